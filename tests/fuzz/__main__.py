"""Fuzz the simulator: ``python -m tests.fuzz --scenarios=5000``; ``--scenario=...`` plays one again."""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys

from tests.xla_flags import quick_to_compile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", quick_to_compile())  # before JAX is imported

from qos_jax.runs.progress import progress
from tests.fuzz.fuzz import fuzz, violation_of
from tests.fuzz.scenario import POLICIES, REQUESTS, RUNS, SHAPES, Scenario, scenarios
from tests.fuzz.world import WORLDS


def main() -> int:
    """Fuzz as the arguments say; 0 if every invariant held, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--scenarios", type=int, default=5000, help="how many to play")
    parser.add_argument("--seed", type=int, default=None, help="of the draws; by default another each time")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of fleets, with commas between")
    parser.add_argument("--worlds", default=",".join(WORLDS), help="to play scenarios in, beside none")
    parser.add_argument("--scenario", default=None, help="play this one alone, as a violation names it")
    given = parser.parse_args()
    if given.scenario is not None:
        names = {"Scenario": Scenario, "inf": float("inf")}
        scenario = eval(given.scenario, {"__builtins__": {}}, names)
        violation = violation_of(scenario, (scenario.policy,), collections.Counter())
        print(violation or "every invariant holds")
        return int(violation is not None)
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    print(
        f"seed {seed}: {given.scenarios:,} scenarios of {RUNS} traces of {REQUESTS} requests", file=sys.stderr
    )
    with progress(given.scenarios, "scenarios") as advance:
        strategy = scenarios(
            shapes=tuple(given.shapes.split(",")), worlds=("", *filter(None, given.worlds.split(",")))
        )
        seen, violation = fuzz(strategy, POLICIES, given.scenarios, seed, lambda: advance(1))
    print(", ".join(f"{count:,} {name}" for name, count in seen.items()))
    if violation is not None:
        print(f"\nseed {seed}, after {seen['scenarios']:,} scenarios: {violation}")
        return 1
    print(f"seed {seed}: every invariant held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
