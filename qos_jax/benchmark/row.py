"""One measurement of speed, as a row of tables and a line of ``metrics.jsonl``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qos_jax.serving import ServingConfig

SIMULATOR, REFERENCE, HEURISTICS, ROLLOUT = "simulator", "reference", "heuristics", "rollout"
HAN_PATHS, DECISION, SEARCH, PPO, SAC, DISTIL = "han_paths", "decision", "search", "ppo", "sac", "distil"
# What can be asked for, in the order it is measured in.
WHAT = (SIMULATOR, HEURISTICS, HAN_PATHS, DECISION, ROLLOUT, SEARCH, PPO, SAC, DISTIL)
KEY_HEADS = ("what", "by", "environments", "experts", "slots")  # of ``Speed.key``
_RATES = ("decisions_per_s", "decisions_per_cpu_s")
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": int | float, "float | None": int | float | None}


@dataclasses.dataclass(frozen=True)
class Speed:
    """One measurement; times are medians over the repeats. A routed request is one decision.

    ``moved_bytes_per_decision`` is the least that must go through memory: the state of an environment
    read once and written once, and, in training, the inputs of the network written once and read as often
    as the learner looks at them. What a cache keeps meanwhile is not known, so it is a floor, not an account.
    """

    what: str  # one of WHAT, or REFERENCE
    name: str  # router, agent, or path measured
    environments: int  # side by side in one program
    experts: int  # N
    slots: int  # running slots of an expert
    decisions: int  # of one repeat
    wall_s: float  # of one repeat
    cpu_s: float  # of one repeat, of the whole process, all threads
    compile_s: float = 0.0
    state_bytes_per_environment: int = 0  # the environment's state
    program_bytes_per_environment: int = 0  # arguments, outputs and scratch of the compiled program
    moved_bytes_per_decision: float = 0.0  # at least; 0 = not counted
    floor_share: float | None = None  # time those bytes take at the copy bandwidth / wall_s
    peak_bytes: int = 0  # most memory this process has held by then
    # Further figures of a measurement, by name: QoS, shares of time, ratios, percentiles.
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def decisions_per_s(self) -> float:
        """Decisions per second of wall-clock time."""
        return self.decisions / self.wall_s

    @property
    def decisions_per_cpu_s(self) -> float:
        """Decisions per second of processor time."""
        return self.decisions / self.cpu_s

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """What no two rows of a run share."""
        return self.what, self.name, self.environments, self.experts, self.slots

    def placed(self, bandwidth_bytes_per_s: float, peak_bytes: int) -> Speed:
        """Return the row with its share of the memory's bandwidth, and the memory held."""
        moved = self.moved_bytes_per_decision * self.decisions
        share = moved / bandwidth_bytes_per_s / self.wall_s if moved else None
        return dataclasses.replace(self, floor_share=share, peak_bytes=peak_bytes)

    def record(self) -> dict[str, Any]:
        """Return the row as JSON, with its rates."""
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in _RATES}}


def sizes(serving: ServingConfig) -> dict[str, Any]:
    """Return the fields of a row that the fleet determines."""
    return {"experts": serving.num_experts, "slots": serving.running_slots}


def speed_of(record: Mapping[str, Any]) -> Speed:
    """Return the row of a record.

    Raises:
      ValueError: a field is missing or of another type, or a time or a count is not above 0.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(Speed)}
    for name, kind in fields.items():
        if name not in record:
            raise ValueError(f"{name!r} is missing")
        if not isinstance(record[name], _KINDS.get(kind, dict)) or isinstance(record[name], bool):
            raise ValueError(f"{name!r} is {record[name]!r}")
    row = Speed(**{name: record[name] for name in fields})
    for name in ("decisions", "wall_s", "cpu_s"):
        if not 0 < getattr(row, name) < float("inf"):
            raise ValueError(f"{name!r} is {getattr(row, name)!r}")
    return row
