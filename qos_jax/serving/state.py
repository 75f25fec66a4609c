"""The state of N experts: fixed slots of requests in order of arrival, and each expert's lead."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.checks import COUNT, COUNT_OR_ZERO, check_one_of, check_range

LLAMA_CPP = "llama_cpp"
NO_LIFE = -(2**30)  # life of a prefix long since evicted; far from overflow
SMALL_FLEET_SLOTS = 2_048  # of all experts together
SCHEDULERS = ("prefill_first", "chunked_prefill", LLAMA_CPP)


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """Static sizes of a fleet; hashable, so usable as a static argument of ``jax.jit``.

    Raises:
      InputError: a size below 1, or an unknown scheduler.
    """

    num_experts: int  # N
    running_slots: int  # the fleet's largest max_running
    waiting_slots: int  # the fleet's largest max_waiting
    scheduler: str = "prefill_first"  # one of SCHEDULERS
    # Prefix groups that each expert remembers beside those in its slots; 0 = no prefix caching.
    prefix_entries: int = 0
    # Groups one within the other that a request may belong to; 0 = to one at most (rule 20).
    prefix_levels: int = 0

    def __post_init__(self) -> None:
        check_range(self, ("num_experts", "running_slots", "waiting_slots"), COUNT)
        check_range(self, ("prefix_entries", "prefix_levels"), COUNT_OR_ZERO)
        check_one_of("scheduler", self.scheduler, SCHEDULERS)

    @property
    def slots(self) -> int:
        """Slots of an expert, K.

        An arrival is accepted only while fewer than ``max_waiting`` wait, so running and waiting
        requests together, preempted ones included, never exceed ``max_running + max_waiting``.
        """
        return self.running_slots + self.waiting_slots

    @property
    def is_small(self) -> bool:
        """Whether a decision reads so few slots that runs in turn are faster, where small loops are joined.

        Of larger fleets XLA joins none (:mod:`qos_jax.kernels`), and turns may be a quarter slower
        (data/results/speed.md).
        """
        return self.num_experts * self.slots <= SMALL_FLEET_SLOTS


@struct.dataclass
class PrefixLevel:
    """One of the groups, one within the other, that requests share tokens with (README.md, rule 20)."""

    group: jax.Array  # [...] int32, -1 = the request follows no further group
    end_tokens: jax.Array  # [...] int32, of the prompt, up to which it follows the group; rises by level


Path = tuple[PrefixLevel, ...]  # from the root


def end_of(path: Path) -> jax.Array:
    """Return the token up to which requests follow any of their groups, of the shape of the path's leaves."""
    return functools.reduce(jnp.maximum, (level.end_tokens for level in path))


@struct.dataclass
class PrefixSlots:
    """The prefix of each slot's request, and what the cache holds of it (README.md, rules 20 to 25)."""

    group: jax.Array  # [N, K] int32, -1 = shares nothing
    prefix_tokens: jax.Array  # [N, K] int32, most tokens of its prompt that a cache could hold
    cached_tokens: jax.Array  # [N, K] int32, tokens of its context that need no prefill when it is admitted
    # [N, K] int32, KV tokens to be allocated until nothing is left, the last blocks going first: of a dead
    # slot's context, or of the cached tokens of a waiting one.
    life_tokens: jax.Array
    shared_tokens: jax.Array  # [N, K] int32, of its KV tokens, those that an earlier live request holds too
    hit_tokens: jax.Array  # [N, K] int32, cached tokens when it was first admitted; -1 = not yet
    path: Path | None = None  # leaves [N, K], from the root, where groups are nested


@struct.dataclass
class PrefixTable:
    """The last C prefix groups that left the slots of each expert, by the order in which they did."""

    group: jax.Array  # [N, C] int32, -1 = none
    tokens: jax.Array  # [N, C] int32, KV tokens of whole blocks
    life_tokens: jax.Array  # [N, C] int32, as in :class:`PrefixSlots`
    path: Path | None = None  # leaves [N, C], likewise


@struct.dataclass
class ServingState:
    """N experts with K slots each, as of now; no absolute clock, so a trace may last for weeks.

    The slots of an expert are in order of arrival. A slot is live from its request's arrival to its
    completion; admission is FIFO and preemption takes the latest, so **the running requests are
    always the earliest of the live ones**: every FIFO rule is a prefix sum over slots. A dead slot
    keeps the outcome of its request until a later arrival overwrites it.

    Token counts are those at the END of the iteration in progress, which ends ``lead_s`` from now: a
    live running request with no tokens left completes then.
    """

    request_id: jax.Array  # [N, K] int32, -1 = never used
    live: jax.Array  # [N, K] bool, arrived and not completed
    running: jax.Array  # [N, K] bool, in the batch; live and not running = waiting
    age_s: jax.Array  # [N, K] float32, seconds since arrival (live slots)
    context_tokens: jax.Array  # [N, K] int32, prompt + generated tokens
    left_tokens: jax.Array  # [N, K] int32, output tokens not yet generated
    prefill_left_tokens: jax.Array  # [N, K] int32, context not yet prefilled (chunked prefill, running)
    ttft_s: jax.Array  # [N, K] float32, seconds from arrival to first token, at the server; -1 = none yet
    latency_s: jax.Array  # [N, K] float32, E2E latency in seconds, network included; -1 = not known yet
    preemptions: jax.Array  # [N, K] int32
    lead_s: jax.Array  # [N] float32, seconds from now to the end of the iteration in progress; 0 = none
    prefix: PrefixSlots | None = None  # with prefix caching

    @property
    def waiting(self) -> jax.Array:
        """[N, K] bool: queued, and not in the batch."""
        return self.live & ~self.running


def empty_state(config: ServingConfig) -> ServingState:
    """Return N idle experts with every slot free."""
    shape = (config.num_experts, config.slots)

    def ints(value: int = 0) -> jax.Array:
        return jnp.full(shape, value, jnp.int32)

    def floats(value: float = 0.0) -> jax.Array:
        return jnp.full(shape, value, jnp.float32)

    def flags() -> jax.Array:
        return jnp.zeros(shape, jnp.bool_)

    return ServingState(
        request_id=ints(-1),
        live=flags(),
        running=flags(),
        age_s=floats(),
        context_tokens=ints(),
        left_tokens=ints(),
        prefill_left_tokens=ints(),
        ttft_s=floats(-1.0),
        latency_s=floats(-1.0),
        preemptions=ints(),
        lead_s=jnp.zeros((config.num_experts,), jnp.float32),
        prefix=None
        if config.prefix_entries == 0
        else PrefixSlots(
            group=ints(-1),
            prefix_tokens=ints(),
            cached_tokens=ints(),
            life_tokens=ints(),
            shared_tokens=ints(),
            hit_tokens=ints(-1),
            path=_empty_path(config, ints()),
        ),
    )


def empty_table(config: ServingConfig) -> PrefixTable | None:
    """Return what N experts remember at first, nothing; None without prefix caching."""
    if config.prefix_entries == 0:
        return None
    none = jnp.zeros((config.num_experts, config.prefix_entries), jnp.int32)
    path = _empty_path(config, none)
    return PrefixTable(group=none - 1, tokens=none, life_tokens=none + NO_LIFE, path=path)


def _empty_path(config: ServingConfig, none: jax.Array) -> Path | None:
    return tuple(PrefixLevel(none - 1, none) for _ in range(config.prefix_levels)) or None
