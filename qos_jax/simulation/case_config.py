"""Which cases a comparison is made of: workloads, rates, seeds and the numbers of each workload."""

from __future__ import annotations

import dataclasses

from qos_jax.checks import (
    COUNT,
    COUNT_OR_ZERO,
    NON_NEGATIVE,
    POSITIVE,
    SEED,
    Interval,
    check_distinct,
    check_range,
    check_some_of,
)
from qos_jax.errors import input_error
from qos_jax.options import check_options, option
from qos_jax.workload import AddedError
from qos_jax.workload.conversations import MEAN_TURNS, MEAN_TURNS_RANGE, SystemPrompts
from qos_jax.workload.named import TABLE_MATCH_HELP, TABLE_MATCHES, WORKLOADS
from qos_jax.workload.sessions import MEAN_THINK_S

MAX_BIAS_LOG = 10.0  # a factor of 22,000


@dataclasses.dataclass(frozen=True)
class CaseConfig:
    """Which cases to build.

    Raises:
      InputError: a value out of its range, naming the field, which is also the flag's name.
    """

    workloads: tuple[str, ...] = option(("poisson", "azure_conv"), known=WORKLOADS)  # how requests arrive
    arrival_rates: tuple[float, ...] = ()  # requests / s, for every workload; empty = by load, or native
    loads: tuple[float, ...] = (0.4, 0.75, 1.1)  # shares of the fleet's capacity, for synthetic workloads
    seeds: int = 16  # independent draws of requests, arrivals and predictions
    seed: int = 0  # of all draws
    num_requests: int = 2048  # requests of a run; a trace is run whole
    error_level: float = 1.0  # of predictions: 0 = perfect, 1 = as real predictors, more = worse
    length_bias_log: float = 0.0  # added to the log of predicted lengths, which no router knows
    length_noise_log: float = 0.0  # std of a log-normal error added to predicted lengths
    quality_bias: float = 0.0  # added to predicted qualities
    quality_noise: float = 0.0  # std of a normal error added to predicted qualities
    known_length_noise: bool = True  # whether routers know length_noise_log
    gap_cv: float = 3.0  # coefficient of variation of the gaps of workload gamma
    burst_factor: float = 4.0  # of workload mmpp: rate in bursts over rate in calm
    burst_mean_s: float = 10.0  # of workload mmpp: mean seconds of a burst
    calm_mean_s: float = 30.0  # of workload mmpp: mean seconds between bursts
    conversation_turns: float = MEAN_TURNS  # mean turns, of workloads conversation and sessions
    open_conversations: int = 100  # of workload conversation, at a time: a user thinks for so many arrivals
    conversation_limit_tokens: int = 4096  # a conversation ends before a turn exceeds it
    think_s: float = MEAN_THINK_S  # of workload sessions, mean seconds from an answer to the next turn
    system_prompts: int = 0  # one of which each conversation begins with; 0 = with what the user says
    system_prompt_tokens: int = 256  # of each of system_prompts
    system_prompt_skew: float = 1.0  # Zipf's exponent of how popular they are; 0 = all alike
    replicas: bool = False  # whether all experts answer as the fleet's first: one model on several servers
    diurnal_swing: float = 0.8  # of workload diurnal: rates run from 1 - swing to 1 + swing over a run
    table_match: str = option("nearest", help=TABLE_MATCH_HELP, known=TABLE_MATCHES)

    def __post_init__(self) -> None:
        check_options(self)
        check_some_of("workloads", self.workloads, WORKLOADS)
        for field in ("arrival_rates", "loads"):
            check_distinct(field, getattr(self, field))
        if not self.loads and not self.arrival_rates:
            raise input_error("is empty", field="loads", remedy="give loads or arrival_rates")
        check_range(self, ("arrival_rates", "loads"), POSITIVE)
        check_range(self, ("gap_cv", "burst_factor", "burst_mean_s", "calm_mean_s", "think_s"), POSITIVE)
        check_range(self, ("seeds", "num_requests"), COUNT)
        check_range(self, ("open_conversations", "conversation_limit_tokens", "system_prompt_tokens"), COUNT)
        check_range(self, ("system_prompts",), COUNT_OR_ZERO)
        check_range(self, ("conversation_turns",), MEAN_TURNS_RANGE)
        check_range(self, ("seed",), SEED)
        check_range(
            self, ("error_level", "length_noise_log", "quality_noise", "system_prompt_skew"), NON_NEGATIVE
        )
        check_range(self, ("length_bias_log",), Interval(-MAX_BIAS_LOG, MAX_BIAS_LOG))
        check_range(self, ("quality_bias",), Interval(-1, 1))
        check_range(self, ("diurnal_swing",), Interval(0, 1, below=True))

    @property
    def system(self) -> SystemPrompts:
        """What conversations begin with."""
        return SystemPrompts(self.system_prompts, self.system_prompt_tokens, self.system_prompt_skew)

    @property
    def added_error(self) -> AddedError:
        """What is added to the error that predictions have."""
        names = [field.name for field in dataclasses.fields(AddedError)]
        return AddedError(**{name: getattr(self, name) for name in names})
