"""Ranges that training episodes are drawn from."""

from __future__ import annotations

import dataclasses

from qos_jax.checks import COUNT, DISCOUNT, NON_NEGATIVE, POSITIVE, SHARE, Interval, check_range
from qos_jax.errors import input_error
from qos_jax.workload.conversations import MEAN_TURNS, MEAN_TURNS_RANGE

_FROM_ZERO = ("error_level", "prompt_log_std", "output_log_std", "length_noise_log", "quality_noise")
# What the ends of a range must lie in, where they need not be above 0.
_BOUNDS = {
    **dict.fromkeys(_FROM_ZERO, NON_NEGATIVE),
    "diurnal_swing": DISCOUNT,  # at 1 nothing arrives for a while
    "length_bias_log": Interval(-10, 10),
    "quality_bias": Interval(-1, 1),
}


@dataclasses.dataclass(frozen=True)
class ScenarioConfig:
    """Ranges that each training episode draws from, (lowest, highest); equal ends fix a number.

    Raises:
      InputError: a range out of order or out of bounds, naming the field.
    """

    table_rows: int = 1024  # M, requests an episode draws from
    load: tuple[float, float] = (0.25, 1.25)  # arrival rate / the fleet's capacity, log-uniform
    arrival_rate: tuple[float, float] | None = None  # requests / s, log-uniform, in place of the load
    steady_share: float = 0.3  # share of episodes whose requests arrive at one rate, Poisson
    burst_factor: tuple[float, float] = (1.0, 32.0)  # rate in bursts / rate in calm, log-uniform
    burst_mean_s: tuple[float, float] = (1.0, 60.0)  # seconds, log-uniform
    calm_mean_s: tuple[float, float] = (5.0, 120.0)  # seconds, log-uniform
    diurnal_swing: tuple[float, float] = (0.0, 0.9)  # share by which the rate rises and falls, uniform
    period_s: tuple[float, float] = (30.0, 600.0)  # seconds, of that sine, log-uniform; it starts anywhere
    limit_scale: tuple[float, float] = (0.8, 1.25)  # L over the fleet's own, log-uniform
    speed_log_std: float = 0.1  # of a common factor on all times of an expert, log-normal
    part_log_std: float = 0.05  # of a factor on each single coefficient, log-normal
    shuffle_models: bool = False  # deal the models' qualities and lengths to the servers anew
    error_level: tuple[float, float] = (0.7, 1.3)  # of predictions, 1 = as real ones, uniform
    trace_share: float = 0.5  # share of episodes with log-normal lengths such as traces have
    prompt_median: tuple[float, float] = (100.0, 2500.0)  # tokens, of such an episode, log-uniform
    output_median: tuple[float, float] = (12.0, 300.0)  # tokens, likewise
    prompt_log_std: tuple[float, float] = (0.4, 1.1)  # uniform
    output_log_std: tuple[float, float] = (0.4, 1.2)  # uniform
    # With prefix caches: share of episodes whose requests are turns of conversations, as launch.evaluate's
    # workload conversation; those of the others share nothing.
    conversation_share: float = 1.0
    conversation_turns: float = MEAN_TURNS  # mean turns
    open_conversations: int = 100  # at a time: a user thinks for so many arrivals
    conversation_limit_tokens: int = 4096  # a conversation ends before a turn exceeds it
    replicas: bool = False  # whether all experts answer as the fleet's first: one model on several servers
    replay_share: float = 1.0  # share of episodes whose requests arrive as in the trace, if there is one
    replay_rate: tuple[float, float] = (0.8, 1.25)  # their arrival rate over the trace's own, log-uniform
    length_bias_log: tuple[float, float] = (0.0, 0.0)  # added to log predicted lengths, unknown, uniform
    length_noise_log: tuple[float, float] = (0.0, 0.0)  # std of a log-normal error of them, known, uniform
    quality_bias: tuple[float, float] = (0.0, 0.0)  # added to predicted qualities, uniform
    quality_noise: tuple[float, float] = (0.0, 0.0)  # std of a normal error of them, uniform

    def __post_init__(self) -> None:
        check_range(self, ["table_rows"], Interval(2, 2**31 - 1, whole=True))
        check_range(self, ["speed_log_std", "part_log_std"], NON_NEGATIVE)
        check_range(self, ["trace_share", "replay_share", "steady_share", "conversation_share"], SHARE)
        check_range(self, ["conversation_turns"], MEAN_TURNS_RANGE)
        check_range(self, ["open_conversations", "conversation_limit_tokens"], COUNT)
        for name, ends in vars(self).items():
            if isinstance(ends, tuple):
                check_range(self, [name], _BOUNDS.get(name, POSITIVE))
                if ends[0] > ends[1]:
                    raise input_error(f"{ends} is out of order", field=name, remedy="give lowest, highest")

    @property
    def adds_error(self) -> bool:
        """Whether predictions may be made worse than they are."""
        added = (self.length_bias_log, self.length_noise_log, self.quality_bias, self.quality_noise)
        return any(any(ends) for ends in added)
