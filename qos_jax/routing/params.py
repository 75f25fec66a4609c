"""What an environment is made of: static sizes and choices, and the traced numbers a sweep varies."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.routing.believed_quality import expected_quality, quality_fit
from qos_jax.routing.faults import Faults
from qos_jax.routing.fleet_state import Request
from qos_jax.routing.observation import KnownFleet
from qos_jax.routing.telemetry import Telemetry, TelemetryConfig
from qos_jax.serving import FleetProfile, ServiceLimits, ServingConfig, as_limits
from qos_jax.workload.arrivals import ArrivalProcess
from qos_jax.workload.request_table import PREFIX_FIELDS, RequestTable, prefix_levels

REWARDS = ("qos", "paper", "potential")


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """Static choices of an environment; hashable. A change of any recompiles.

    Raises:
      ValueError: an unknown name, or ``max_steps`` below 1.
    """

    serving: ServingConfig
    max_steps: int = 1000  # decisions until the time limit (truncation)
    reward: str = "qos"  # "qos", "paper" or "potential", see reward.py
    allow_drop: bool = True  # whether action N (drop the request) is valid
    measures: bool = False  # whether answers are measured, for routers that know no profile
    # What routers know; None = everything, and servers never err. Its numbers are in ``EnvParams.telemetry``.
    telemetry: TelemetryConfig | None = None

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise ValueError(f"reward {self.reward!r} is unknown: use one of {', '.join(REWARDS)}")
        if self.measures and self.telemetry is not None:
            raise ValueError("measures = True: answers are measured only where telemetry is None")
        if self.max_steps < 1:
            raise ValueError(f"max_steps = {self.max_steps}: must be at least 1")

    @property
    def num_actions(self) -> int:
        """N experts, and one more to drop if allowed."""
        return self.serving.num_experts + int(self.allow_drop)


@struct.dataclass
class Episode:
    """T arrivals to replay: when, and which row of the request table each is."""

    gap_after_s: jax.Array  # [T] float32, seconds from this arrival to the next; the last inf = drain
    row: jax.Array  # [T] int32, row of the request table


@struct.dataclass
class EnvParams:
    """Every number of an environment that may be swept; all leaves traced.

    Either ``process`` is set, which draws arrivals without end, or ``episode``, which is replayed and then
    ends. With a process rows of the table are drawn evenly; with prefix caching they come in order, over and
    over, since each turn of a conversation follows from the last.
    """

    profile: FleetProfile  # leaves [N]
    table: RequestTable  # leaves [M] and [M, N], what requests are about
    limits: ServiceLimits  # leaves [] float32, seconds
    length_log_std: jax.Array  # [N] float32, known std of log(true) - log(predicted) output tokens
    impact_weight: jax.Array  # [] float32, weight of the paper's impact penalty
    discount: jax.Array  # [] float32, gamma of the potential-based reward
    process: ArrivalProcess | None = None
    episode: Episode | None = None
    telemetry: Telemetry | None = None  # with ``EnvConfig.telemetry``, else None
    faults: Faults | None = None  # None = servers are as their profiles say
    # Decisions until the time limit, static; None = EnvConfig.max_steps. Trainers read it by gymnax's name.
    max_steps_in_episode: int | None = struct.field(pytree_node=False, default=None)

    @property
    def known(self) -> KnownFleet:
        """What a router knows of the fleet beforehand."""
        return KnownFleet(self.profile, self.limits, self.length_log_std)

    @property
    def latency_limit_s(self) -> jax.Array:
        """[] float32, L, seconds per output token."""
        return self.limits.latency_limit_s


def make_params(
    profile: FleetProfile,
    table: RequestTable,
    latency_limit_s: float | jax.Array | ServiceLimits,
    length_log_std: jax.Array,
    *,
    process: ArrivalProcess | None = None,
    episode: Episode | None = None,
    impact_weight: float | jax.Array = 1.0,
    discount: float | jax.Array = 0.99,
    telemetry: Telemetry | None = None,
    faults: Faults | None = None,
) -> EnvParams:
    """Return :class:`EnvParams` on device, numbers as float32.

    Args:
      profile: the fleet, leaves [N].
      table: what requests are about, leaves [M] and [M, N].
      latency_limit_s: L, seconds per output token, or all limits as :class:`ServiceLimits`.
      length_log_std: [N] known std of log(true) - log(predicted) output tokens.
      process: draws arrivals without end.
      episode: arrivals to replay.
      impact_weight: weight of the paper's impact penalty.
      discount: gamma of the potential-based reward.
      telemetry: what routers measure, and their shares; ``EnvConfig.telemetry`` says how they use it.
      faults: how servers differ from their profile, leaves [N]; they need ``EnvConfig.telemetry``, too.

    Raises:
      ValueError: neither or both of ``process`` and ``episode``, or a table for another number of experts.
    """
    if (process is None) == (episode is None):
        raise ValueError("give either process or episode")
    num_experts = profile.max_running.shape[-1]
    if table.quality.shape[-1] != num_experts:
        raise ValueError(f"the table has {table.quality.shape[-1]} experts, the fleet {num_experts}")
    return EnvParams(
        profile=jax.tree.map(_as_32_bits, profile),
        table=jax.tree.map(_as_32_bits, table),
        limits=jax.tree.map(_as_32_bits, as_limits(latency_limit_s)),
        length_log_std=jnp.asarray(length_log_std, jnp.float32),
        impact_weight=jnp.asarray(impact_weight, jnp.float32),
        discount=jnp.asarray(discount, jnp.float32),
        process=jax.tree.map(_as_32_bits, process),
        episode=None if episode is None else jax.tree.map(_as_32_bits, episode),
        telemetry=jax.tree.map(_as_32_bits, telemetry),
        faults=jax.tree.map(_as_32_bits, faults),
    )


def _as_32_bits(leaf: Any) -> jax.Array:
    """Return an array of 32 bits, also where JAX keeps 64 (``JAX_ENABLE_X64``); masks stay as they are."""
    kind = jnp.result_type(leaf)
    if jnp.issubdtype(kind, jnp.floating):
        return jnp.asarray(leaf, jnp.float32)
    return jnp.asarray(leaf, jnp.int32 if jnp.issubdtype(kind, jnp.integer) else None)


def request_at(table: RequestTable, row: jax.Array) -> Request:
    """Row ``row`` ([] int32) of the table as a request, with its prefix fields where there are any."""
    return Request(
        prompt_tokens=table.prompt_tokens[row],
        output_tokens=table.output_tokens[row],
        quality=table.quality[row],
        predicted_output_tokens=table.predicted_output_tokens[row],
        predicted_quality=table.predicted_quality[row],
        **jax.tree.map(lambda leaf: leaf[row], {name: getattr(table, name) for name in PREFIX_FIELDS}),
    )


def drawn_row(config: ServingConfig, key: jax.Array, table: RequestTable, number: jax.Array) -> jax.Array:
    """Return the row of a table that arrives as number ``number``, [] int32: any, or the next with caches."""
    rows = table.prompt_tokens.shape[0]
    if config.prefix_entries:
        return number % rows
    return jax.random.randint(key, (), 0, rows, jnp.int32)


def check_prefixes(config: ServingConfig, table: RequestTable) -> None:
    """Check that requests say what they share where servers have prefix caches.

    Raises:
      ValueError: they do not, or not with as many nested groups as the caches are for.
    """
    if not config.prefix_entries:
        return
    if table.prefix_group is None or table.prefix_tokens is None:
        raise ValueError(
            f"prefix_entries = {config.prefix_entries}, and the table has no prefix_group and prefix_tokens: "
            "make turns of its rows by draw_conversations, or of none by with_prefixes"
        )
    levels = prefix_levels(table)
    if levels != config.prefix_levels:
        raise ValueError(
            f"the table's requests are in {levels} nested groups: set ServingConfig.prefix_levels = {levels}"
        )


def as_good_as_expected(params: EnvParams) -> EnvParams:
    """The same environment, each request as good as its predictions let expect: no draw of it is left.

    Nothing the simulator does depends on qualities, so values get less noisy (half the spread, on the shipped
    fleet). Expected is what a regression on the rows of the table itself says: predictions as they are may
    overstate how experts differ, and whoever is paid by them learns to follow their errors.
    """
    table = params.table
    quality = expected_quality(quality_fit(table), table.predicted_quality)
    return dataclasses.replace(params, table=dataclasses.replace(table, quality=quality))
