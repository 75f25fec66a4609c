"""Every setting of a training run; ``launch.train`` makes its flags from them."""

from __future__ import annotations

import dataclasses
import math

from qos_jax.checks import (
    COUNT,
    COUNT_OR_ZERO,
    NON_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    check_distinct,
    check_range,
    check_some_of,
)
from qos_jax.errors import input_error
from qos_jax.learning.distil import DistilConfig
from qos_jax.learning.ppo import PPOConfig
from qos_jax.learning.sac_config import SACConfig
from qos_jax.learning.search import SearchConfig
from qos_jax.options import check_options, option
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.router_input import searched_numbers
from qos_jax.policies.types import PREDICTIONS, PROFILES
from qos_jax.routing.params import REWARDS
from qos_jax.serving import SCHEDULERS
from qos_jax.simulation.world_config import PREFIX_HELP
from qos_jax.training.scenario_config import ScenarioConfig
from qos_jax.training.world_ranges import WorldRanges
from qos_jax.workload.limit_presets import LIMIT_PRESETS, PRESET_HELP
from qos_jax.workload.named_table import ALL_ROWS, SPLITS

AGENTS = ("ppo", "sac", "none")
JUDGED_ON = ("poisson", "gamma", "mmpp", "diurnal", "conversation")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a run is judged on the way: every workload at every load, the same requests for the baseline.

    These cases choose the best checkpoint, so no figure reported of the router may be of their seed.

    Raises:
      InputError: a value out of its range, naming the field.
    """

    every: int = 50  # updates between two evaluations; also at the start and the end of each phase
    workloads: tuple[str, ...] = option(("poisson", "mmpp", "diurnal"), known=JUDGED_ON)  # and any trace
    loads: tuple[float, ...] = (0.4, 0.75, 1.1)  # shares of the fleet's capacity
    arrival_rates: tuple[float, ...] = ()  # requests / s, in place of the loads
    seeds: int = 8  # independent draws of requests and arrivals
    num_requests: int = 512  # of each
    seed: int = 10_000  # of all draws

    def __post_init__(self) -> None:
        check_range(self, ["every", "seeds", "num_requests"], COUNT)
        check_range(self, ["seed"], SEED)
        check_range(self, ["loads", "arrival_rates"], POSITIVE)
        check_options(self)
        for field in ("workloads", "loads", "arrival_rates"):
            check_distinct(field, getattr(self, field))
        if not self.loads and not self.arrival_rates:
            raise input_error("is empty", field="loads", remedy="give loads or arrival_rates")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run: ``search`` and ``distil``, if they have any updates, then the agent, if there is one.

    With ``network.learned_impact`` the agent, which learns that, comes first.

    Raises:
      InputError: a value out of its range, naming the field, or nothing to train.
    """

    fleet: str = "edge6"  # a fleet CSV, or the name of a shipped one: edge6, paper6
    scheduler: str = option("prefill_first", known=SCHEDULERS)  # iteration scheduler of every expert
    prefix_entries: int = option(0, help=PREFIX_HELP)
    latency_limit_s: float | None = None  # L, s per output token; none = the preset's or the fleet's own
    ttft_limit_s: float | None = None  # time to first token, seconds at the server; none = no limit
    tpot_limit_s: float | None = None  # seconds per output token after the first, at the server
    e2e_limit_s: float | None = None  # seconds from arrival to last token, network included
    limits: str | None = option(None, help=PRESET_HELP, known=LIMIT_PRESETS)
    table: str | None = None  # request table (.npz) to draw from; none = synthetic requests
    table_split: str = option("train", known=(ALL_ROWS, *SPLITS))  # which rows of the table
    trace: str | None = None  # trace file whose arrivals are trained and judged on, see scenario.replay_share
    trace_start_s: float = 0.0  # first second of the trace to use
    trace_end_s: float = math.inf  # second of the trace to stop before
    start: str | None = None  # a trained router to go on from: a run or a checkpoint; none = untrained
    seed: int = 0  # of all draws in training
    agent: str = option("ppo", known=AGENTS)  # what trains after search and distil
    max_steps: int = 512  # decisions of an episode
    reward: str = option("potential", known=REWARDS)  # what the agent is paid
    impact_weight: float = 1.0  # of the penalty in the paper's reward
    discount: float | None = None  # gamma of the potential-based reward; none = the agent's
    log_every: int = 10  # updates between two lines of metrics.jsonl, which hold their means
    checkpoint_every: int = 50  # updates between two checkpoints; also at the end of each phase
    keep_last: int = 2  # checkpoints to keep, the best apart
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    scenario: ScenarioConfig = dataclasses.field(default_factory=ScenarioConfig)
    world: WorldRanges = dataclasses.field(default_factory=WorldRanges)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    distil: DistilConfig = dataclasses.field(default_factory=DistilConfig)
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    sac: SACConfig = dataclasses.field(default_factory=SACConfig)

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, ["seed"], SEED)
        check_range(self, ["max_steps", "log_every", "checkpoint_every", "keep_last"], COUNT)
        check_range(self, ["prefix_entries"], COUNT_OR_ZERO)
        check_range(self, ["impact_weight"], NON_NEGATIVE)
        check_range(self, ["discount"], SHARE)
        if not self.evaluation.workloads and not self.trace:
            remedy = "name at least one, or give a trace"
            raise input_error("is empty", field="evaluation.workloads", remedy=remedy)
        if self.distil.updates and self.network.information == PREDICTIONS:
            fault = f"is {self.distil.updates}, and what is distilled is the net gain by profiles"
            raise input_error(fault, field="distil.updates", remedy="set it to 0")
        self._check_world()
        self._check_caches()
        is_learned = self.start is not None and self.agent == "none"
        if self.network.learned_impact and self.agent != "ppo" and not is_learned:
            fault = "is True, and PPO alone trains the impact estimator"
            remedy = "set agent=ppo, or agent=none and start at a router that has one"
            raise input_error(fault, field="network.learned_impact", remedy=remedy)
        if self.search.updates:
            self._check_searched()
        if self.agent == "none" and self.search.updates == self.distil.updates == 0:
            fault = "is 'none', and neither search nor distil has updates, so nothing trains"
            raise input_error(fault, field="agent", remedy="choose an agent, or give distil.updates")

    def _check_world(self) -> None:
        believes = self.network.believes
        if believes != (self.world.view is not None):
            fault = f"is {believes}, and routers {'see everything' if believes else 'act on beliefs'}"
            remedy = "give world.view" if believes else "set network.believes=true"
            raise input_error(fault, field="network.believes", remedy=remedy)
        if self.distil.updates and believes:
            fault = (
                f"is {self.distil.updates}, and trials of single actions are of routers that see everything"
            )
            raise input_error(fault, field="distil.updates", remedy="set it to 0")

    def _check_caches(self) -> None:
        network = self.network
        sees = self.prefix_entries > 0 and network.information == PROFILES
        if network.sees_caches != sees:
            fault = f"is {network.sees_caches}, and there are {'' if sees else 'no '}prefix caches"
            remedy = "set network.sees_caches=true" if sees else "give prefix_entries"
            raise input_error(fault, field="network.sees_caches", remedy=remedy)

    def _check_searched(self) -> None:
        network = self.network
        if network.information == PREDICTIONS and not network.learned_impact:
            fault = "is 'predictions', and without a learned impact there is no net gain to search"
            remedy = "set search.updates=0, or network.learned_impact=true"
            raise input_error(fault, field="network.information", remedy=remedy)
        if self.search.numbers:
            known = searched_numbers(network.information)
            check_some_of("search.numbers", self.search.numbers, known)

    @property
    def reward_discount(self) -> float:
        """Gamma of the potential-based reward."""
        if self.discount is not None:
            return self.discount
        return self.sac.gamma if self.agent == "sac" else self.ppo.gamma
