"""A fixed sample of the fuzzed scenarios; ``make fuzz`` plays thousands, of every shape and router."""

import dataclasses
from collections import Counter

import numpy as np

from tests.fuzz import fuzz as fuzzing
from tests.fuzz import invariants
from tests.fuzz.fuzz import fuzz, violation_of
from tests.fuzz.scenario import Scenario, scenarios

POLICIES = ("random", "load_aware_greedy")
SAMPLE = scenarios(("table",), ("chunked_prefill",), POLICIES, ("",))


def test_every_invariant_holds_in_a_sample():
    seen, violation = fuzz(SAMPLE, POLICIES, 40, seed=0)
    assert violation is None, str(violation)
    assert seen["scenarios"] == 40
    for name in ("completed", "rejected", "dropped", "preempted"):
        assert seen[name] > 40, name
    assert seen["near ties"] < seen["traces"] / 10


def test_every_invariant_holds_in_a_sample_of_worlds():
    one = ("shortest_queue",)
    seen, violation = fuzz(scenarios(("affine",), ("prefill_first",), one, ("twin",)), one, 30, seed=0)
    assert violation is None, str(violation)
    assert seen["worlds"] == 30
    assert seen["failed in worlds"] > 30


def test_a_violation_is_shrunk_and_can_be_played_again(monkeypatch):
    """A false claim: no request ever waits for its first token for 0.05 s."""

    def claim(scenario, built, played):
        assert np.nanmax(played.result.records.ttft_s, initial=0.0) < 0.05

    monkeypatch.setattr(fuzzing, "INVARIANTS", (*invariants.INVARIANTS, claim))
    _, violation = fuzz(SAMPLE, POLICIES, 40, seed=0)
    assert violation is not None
    assert violation.invariant == "claim"
    again = eval(repr(violation.scenario), {"Scenario": Scenario, "inf": np.inf})
    assert again == violation.scenario
    assert violation_of(again, POLICIES, Counter()).invariant == "claim"
    assert again.free == ()  # the simplest that fails
    assert dataclasses.asdict(again)["tie_share"] == 0.0
    assert "again: python -m tests.fuzz --scenario=" in str(violation)
