"""Sessions in closed loop, against the reference driven turn by turn."""

import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies import Policy
from qos_jax.serving import FleetProfile, ServiceLimits, ServingConfig
from qos_jax.serving.reference import simulate_fleet
from qos_jax.simulation.metrics import SESSION_METRICS, summarise
from qos_jax.simulation.records import COMPLETED, STATUS_NAMES
from qos_jax.simulation.route_sessions import TICK_S
from qos_jax.simulation.sessions import SessionRuns, session_metrics, simulate_sessions
from qos_jax.workload import RequestTable
from qos_jax.workload.conversations import SystemPrompts
from qos_jax.workload.sessions import as_sessions

RUNS, USERS, TURNS, COUNT, EXPERTS = 3, 8, 6, 40, 2


def drops_or_best(params, key, seen):
    """Route to the expert of the best predicted quality; drop where none has any."""
    quality = seen.predicted_quality
    return jnp.where(jnp.max(quality) > 0, jnp.argmax(quality), EXPERTS)


ROUTER = Policy("as_predicted", "the best predicted", router=drops_or_best)


def fleet(kv_capacity_tokens):
    numbers = [0.01, 1e-3, 1e-7, 0.02, 1e-4, 2e-7, 0.01, 1.0, 1.0]
    return FleetProfile(
        *(np.full(EXPERTS, n, np.int32) for n in (2, 1, 2048, kv_capacity_tokens)),
        *((n * np.array([0.8, 1.3])).astype(np.float32) for n in numbers),
    )


def runs(kv_capacity_tokens, system):
    rng = np.random.default_rng(0)
    shape = (RUNS, USERS * TURNS)
    # One of the experts, in one turn of sixteen neither.
    choice = (rng.integers(0, EXPERTS, (*shape, 1)) == np.arange(EXPERTS)) & (rng.random((*shape, 1)) < 0.94)
    quality, output = choice.astype(np.float32), np.repeat(rng.integers(2, 60, (*shape, 1)), EXPERTS, -1)
    # Answers as long at one as at the other, since a prompt holds their mean (serving/README.md, rule 20).
    prompt, output = rng.integers(5, 100, shape).astype(np.int32), output.astype(np.int32)
    table = RequestTable(prompt, quality, output, quality, output.astype(np.float32))
    seeds = np.arange(RUNS, dtype=np.uint32)
    table, times = as_sessions(
        table, seeds, sessions=USERS, mean_turns=4.0, mean_think_s=0.5, limit_tokens=600, system=system
    )
    return SessionRuns(
        profile=fleet(kv_capacity_tokens),
        limits=ServiceLimits(np.full(RUNS, 0.1, np.float32)),
        length_log_std=np.ones((RUNS, EXPERTS), np.float32),
        requests=table,
        think_s=times.think_s,
        start_s=times.start_s,
        seed=seeds,
        num_requests=COUNT,
    )


def driven(runs, run, scheduler, cached):
    """Drive the reference: each turn is due a time to think after the answer that the turns so far give."""
    rows = {name: np.asarray(getattr(runs.requests, name))[run] for name in FIELDS}
    due = np.round(runs.start_s[run] / TICK_S)
    due -= due.min()
    said, arrived, outcomes = np.zeros(USERS, int), [], []
    for _ in range(COUNT):
        user = int(due.argmin())
        turn = said[user]
        said[user] += 1
        row, again = user * TURNS + turn % TURNS, turn // TURNS * USERS * TURNS
        quality = rows["predicted_quality"][row]
        expert = int(quality.argmax()) if quality.max() > 0 else -1
        arrived.append((due[user] * TICK_S, row, expert, user, turn, rows["prefix_group"][row] + again))
        arrival_s, at, experts, users, turns, group = map(np.array, zip(*arrived, strict=True))
        prefix = {"prefix_group": group, "prefix_tokens": rows["prefix_tokens"][at]} if cached else {}
        prompt, output = rows["prompt_tokens"][at], rows["output_tokens"][at]
        found, _ = simulate_fleet(
            runs.profile,
            arrival_s,
            prompt,
            output,
            np.where(experts == expert, expert, -1),
            scheduler,
            **prefix,
        )
        outcomes = [
            new if e == expert else old for new, old, e in zip(found, [*outcomes, None], experts, strict=True)
        ]
        for i, outcome in enumerate(outcomes):
            if turns[i] == said[users[i]] - 1:
                took_s = outcome.latency_s if outcome.status == "completed" else 0.0
                then_s = arrival_s[i] + took_s + runs.think_s[run, users[i], turns[i] % TURNS]
                due[users[i]] = np.round(then_s / TICK_S)
    return arrival_s, users, turns, outcomes


FIELDS = ("prompt_tokens", "output_tokens", "predicted_quality", "prefix_group", "prefix_tokens")


@pytest.mark.parametrize(
    ("scheduler", "entries", "kv_capacity_tokens"),
    [("chunked_prefill", 16, 60_000), ("prefill_first", 0, 500)],
)
def test_sessions_are_those_of_the_reference(scheduler, entries, kv_capacity_tokens):
    given = runs(kv_capacity_tokens, SystemPrompts())
    config = ServingConfig(EXPERTS, 2, 1, scheduler, entries)
    done = simulate_sessions(config, ROUTER, given, block_runs=2, chunk_requests=16)
    records = done.records
    for run in range(RUNS):
        arrival_s, users, turns, outcomes = driven(given, run, scheduler, entries > 0)
        np.testing.assert_array_equal(records.session[run], users)
        np.testing.assert_array_equal(records.turn[run], turns)
        assert [STATUS_NAMES[code] for code in records.status[run]] == [o.status for o in outcomes]
        np.testing.assert_allclose(records.arrival_s[run], arrival_s, atol=5e-5)
        answered = records.status[run] == COMPLETED
        expected = np.array([o.latency_s for o in outcomes if o.status == "completed"])
        np.testing.assert_allclose(records.latency_s[run][answered], expected, rtol=1e-4)
        if entries:
            cached = [o.cached_tokens for o in outcomes if o.status == "completed"]
            np.testing.assert_array_equal(records.cached_tokens[run][answered], cached)
            assert sum(cached) > 0
    counts = np.bincount(records.status.ravel(), minlength=len(STATUS_NAMES))
    assert counts.sum() == RUNS * COUNT
    assert counts[STATUS_NAMES.index("rejected")] > 0
    assert counts[STATUS_NAMES.index("dropped")] > 0
    assert records.turn.max() >= TURNS  # some begin anew
    assert (records.preemptions.sum() > 0) == (entries == 0)
    figures = summarise(records, done.totals, given.profile, given.limits)
    figures |= session_metrics(given, figures, done.totals.makespan_s)
    hours = USERS * done.totals.makespan_s / 3600
    np.testing.assert_allclose(
        figures["turns_per_session_hour"] * hours, (records.status == COMPLETED).sum(1)
    )
    assert SESSION_METRICS.keys() < figures.keys()
