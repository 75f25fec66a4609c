"""Draw scenarios, play them and check every invariant; the first violation is shrunk and reported."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable

import hypothesis
import numpy as np
from hypothesis import strategies as st

from qos_jax.simulation.records import FAILED, STATUS_NAMES
from tests.fuzz.invariants import INVARIANTS, near_ties
from tests.fuzz.play import play
from tests.fuzz.scenario import RUNS, Scenario, build


@dataclasses.dataclass(frozen=True)
class Violation:
    """What failed, and the smallest scenario found that fails."""

    scenario: Scenario
    invariant: str
    error: Exception

    def __str__(self) -> str:
        runs = build(self.scenario).runs
        used, lines = self.scenario.used, [f"{self.invariant} does not hold: {self.error}", "", "fleet:"]
        for name, values in vars(runs.profile).items():
            lines.append(f"  {name}: {values if name == 'decode_knots' else np.asarray(values).tolist()}")
        lines += ["limits:", f"  {runs.limits}"]
        for r in range(RUNS):
            lines.append(f"requests of run {r} (arrival s, prompt, output by expert):")
            for t in range(used):
                output = runs.requests.output_tokens[r, t].tolist()
                lines.append(f"  {runs.arrival_s[r, t]!r} {runs.requests.prompt_tokens[r, t]} {output}")
        lines += ["", "again: python -m tests.fuzz --scenario=\\", f'  "{self.scenario!r}"']
        return "\n".join(lines)


def violation_of(scenario: Scenario, policies: tuple[str, ...], seen: Counter[str]) -> Violation | None:
    """Play one scenario; ``seen`` counts what it met. ``policies`` are compiled together."""
    built, name = build(scenario), "playing"
    try:
        played = play(scenario, built, policies)
        for invariant in INVARIANTS:
            name = invariant.__name__
            invariant(scenario, built, played)
    except Exception as error:
        return Violation(scenario, name, error)
    status = np.bincount(played.result.records.status.ravel(), minlength=len(STATUS_NAMES))
    seen.update(dict(zip(STATUS_NAMES, status.tolist(), strict=True)))
    seen["preempted"] += int(np.sum(played.result.records.preemptions > 0))
    seen["traces"] += RUNS
    if played.world is not None:
        seen["worlds"] += 1
        seen["failed in worlds"] += int(np.sum(played.world.records.status == FAILED))
    seen["near ties"] += near_ties(played)
    seen["scenarios"] += 1
    return None


def fuzz(
    strategy: st.SearchStrategy[Scenario],
    policies: tuple[str, ...],
    count: int,
    seed: int,
    on_scenario: Callable[[], None] = lambda: None,
) -> tuple[Counter[str], Violation | None]:
    """Play ``count`` scenarios, and stop at the first violation, shrunk.

    Returns:
      What was met, of the scenarios that hold; the violation, if any.
    """
    seen: Counter[str] = Counter()
    found: list[Violation] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(strategy)
    def search(scenario: Scenario) -> None:
        violation = violation_of(scenario, policies, seen)
        if violation is not None:
            found.append(violation)  # the last one is the smallest
            raise violation.error
        if not found:
            on_scenario()

    with contextlib.suppress(Exception):
        search()
    return seen, found[-1] if found else None
