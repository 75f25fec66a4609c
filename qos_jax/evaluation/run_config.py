"""What a single run is given: requests of a file, or users in closed loop; limits, router, world."""

from __future__ import annotations

import dataclasses

from qos_jax.checks import COUNT, COUNT_OR_ZERO, POSITIVE, SEED, check_range
from qos_jax.errors import input_error
from qos_jax.options import check_options, option
from qos_jax.policies import HEURISTICS, ORACLES, REPLAYS
from qos_jax.policies.registry import NEVER_DROPS
from qos_jax.serving import SCHEDULERS, ServiceLimits
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.world_config import PREFIX_HELP, WorldConfig
from qos_jax.workload.conversations import MEAN_TURNS
from qos_jax.workload.limit_presets import LIMIT_PRESETS, PRESET_HELP
from qos_jax.workload.named import SESSIONS
from qos_jax.workload.sessions import MEAN_THINK_S
from qos_jax.workload.setting import limit_settings, limits_of


@dataclasses.dataclass(frozen=True)
class SessionConfig:
    """Users, each of whom says the next turn a time to think after the answer to the last.

    Raises:
      InputError: a value out of its range, or an error level where a table has predictions.
    """

    users: int = 100  # who talk at a time, each in one conversation after the other
    num_requests: int = 1024  # turns of all users, after which the run is drained
    think_s: float = MEAN_THINK_S  # mean seconds from an answer to the next turn
    conversation_turns: float = MEAN_TURNS  # mean turns of a conversation
    conversation_limit_tokens: int = 4096  # a conversation ends before a turn exceeds it
    system_prompts: int = 0  # one of which each conversation begins with; 0 = with what the user says
    system_prompt_tokens: int = 256  # of each of system_prompts
    system_prompt_skew: float = 1.0  # Zipf's exponent of how popular they are; 0 = all alike
    replicas: bool = False  # whether all experts answer as the fleet's first: one model on several servers
    error_level: float = 1.0  # of predictions: 0 = perfect, 1 = as real predictors, more = worse
    table: str | None = None  # request table (.npz) whose rows are what users ask, not synthetic ones

    def __post_init__(self) -> None:
        check_range(self, ("users",), COUNT)
        check_range(self, ("think_s",), POSITIVE)
        self.case_config(seed=0)  # checks the others
        if self.table is not None and self.error_level != 1.0:
            fault = f"{self.error_level} is of synthetic predictions, and a table has its own"
            raise input_error(fault, field="error_level", remedy="leave out error_level, or the table")

    def case_config(self, seed: int) -> CaseConfig:
        """Return the case that these users are, whose rate is theirs if answers took no time."""
        given = dataclasses.asdict(self)
        rate_per_s = given.pop("users") / self.think_s
        del given["table"]
        return CaseConfig(workloads=(SESSIONS,), arrival_rates=(rate_per_s,), seeds=1, seed=seed, **given)


@dataclasses.dataclass(frozen=True)
class SingleRunConfig:
    """Everything that determines the records of a run.

    Raises:
      InputError: no requests, or two sources of them, an unknown scheduler, a limit that is not a positive
        time, a seed out of range, several views, failed requests to be sent again where a file says who gets
        them, users with views or faults.
    """

    fleet: str  # a fleet CSV, or the name of a shipped one: edge6, paper6
    policy: str = option(
        help=f"who routes: one of {', '.join((*HEURISTICS, *ORACLES, *REPLAYS))}; a greedy one with "
        f"{NEVER_DROPS} behind its name drops nothing"
    )
    requests: str | None = option(
        None,
        help="CSV file of the requests: arrival_s, prompt_tokens, and output_tokens, quality and, if known, "
        "predicted_output_tokens and predicted_quality, each once or as name.EXPERT per expert; for the "
        "policy 'assigned' also expert; or a trace such as Mooncake's, whose answers all have quality 1",
    )
    sessions: SessionConfig | None = option(
        None,
        help="users whose next turn comes a time to think after the answer, in place of requests",
        flat=True,
    )
    latency_limit_s: float | None = None  # L, seconds of E2E latency per output token; inf = no limit
    ttft_limit_s: float | None = None  # time to first token, seconds at the server; none = no limit
    tpot_limit_s: float | None = None  # seconds per output token after the first, at the server
    e2e_limit_s: float | None = None  # seconds from arrival to last token, network included
    limits: str | None = option(None, help=PRESET_HELP, known=LIMIT_PRESETS)
    scheduler: str = option("prefill_first", known=SCHEDULERS)  # iteration scheduler of every expert
    prefix_entries: int = option(0, help=PREFIX_HELP)
    seed: int = 0  # of the policy's own randomness and, with sessions, of what users say
    allow_drop: bool = True  # let greedy policies drop what no expert gains from
    world: WorldConfig = option(WorldConfig, flat=True)  # of its views one, by default the twin's

    def __post_init__(self) -> None:
        check_options(self)
        if self.requests == "":
            raise input_error("is empty", field="requests", remedy="give the path of a CSV file")
        if self.requests is None and self.sessions is None:
            raise input_error("is missing", field="requests", remedy="give --requests=FILE, or --sessions")
        _ = self.service_limits  # checks them
        check_range(self, ("seed",), SEED)
        check_range(self, ("prefix_entries",), COUNT_OR_ZERO)
        if len(self.world.views) > 1:
            remedy = f"give one, such as {self.world.views[-1]}; launch.evaluate compares several"
            raise input_error(f"{len(self.world.views)} views for one run", field="views", remedy=remedy)
        if self.world.retry and self.policy in REPLAYS:
            fault = f"the policy {self.policy!r} says where a request goes once"
            raise input_error(fault, field="retry", remedy="leave it out, or choose another policy")
        if self.sessions is not None:
            self._check_sessions()

    def _check_sessions(self) -> None:
        """Refuse what goes with the requests of a file alone."""
        if self.requests is not None:
            fault, remedy = "users of --sessions say what is asked for", "leave out one of the two"
            raise input_error(fault, field="requests", remedy=remedy)
        if self.world.chosen_views:
            fault = "users are simulated where routers see everything and servers have no faults"
            remedy = "leave out views and faults, or --sessions"
            raise input_error(fault, field="sessions", remedy=remedy)
        if self.policy in REPLAYS:
            fault = f"{self.policy!r} replays a column of a file, and sessions have none"
            raise input_error(fault, field="policy", remedy="choose another policy")

    @property
    def service_limits(self) -> ServiceLimits:
        """The limits given, or else those of the preset."""
        return limits_of(None, limit_settings(self), self.limits)

    @property
    def views(self) -> tuple[str, ...]:
        """The one view, () where routers see everything and servers have no faults."""
        return self.world.views or self.world.chosen_views[-1:]
