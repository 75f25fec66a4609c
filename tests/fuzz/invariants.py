"""What must hold of every scenario; a new one is a function here that is listed in ``INVARIANTS``."""

from __future__ import annotations

import jax
import numpy as np

from qos_jax.serving import cut_at_limit, with_context_limit
from qos_jax.serving.reference import ReferenceProfile
from qos_jax.serving.scheduler import BY_NAME
from qos_jax.simulation.metrics import METRICS, summarise
from qos_jax.simulation.records import COMPLETED, DROPPED, FAILED, REJECTED, REJECTED_TOO_LONG, STATUS_NAMES
from tests.fuzz.play import Played
from tests.fuzz.scenario import REQUESTS, RUNS, Built, Scenario

# Rule 15 of serving/README.md: relative and absolute tolerance, and how close two events may be.
RTOL, ATOL_S, TIE_S = 1e-4, 1e-6, 1e-5


def every_request_ends_once(scenario: Scenario, built: Built, played: Played) -> None:
    """Conservation, in the records at the end and in the environment at every step."""
    records, steps = played.result.records, played.steps
    metrics = summarise(records, played.result.totals, built.runs.profile, built.runs.limits)
    parts = ("completed", "rejected", "rejected_too_long", "dropped", "failed")
    assert np.all(metrics["arrived"] == REQUESTS)
    assert np.all(sum(metrics[name] for name in parts) == REQUESTS)
    arrived = np.arange(1, REQUESTS + 1)
    np.testing.assert_array_equal(steps["ended"] + steps["in_flight"], np.tile(arrived, (RUNS, 1)))
    assert np.all(steps["in_flight"][:, -1] == 0)
    for name, status in {
        "completed": COMPLETED,
        "rejected": REJECTED,
        "rejected_too_long": REJECTED_TOO_LONG,
        "dropped": DROPPED,
    }.items():
        counted = np.sum(records.status == status, axis=1)
        np.testing.assert_array_equal(steps[name][:, -1], counted, err_msg=name)
    assert np.all(steps["terminated"][:, -1])
    assert not np.any(steps["terminated"][:, :-1])
    assert not np.any(steps["truncated"])


def nothing_is_negative_or_nan(scenario: Scenario, built: Built, played: Played) -> None:
    """In records, totals, metrics, observations and rewards."""
    records, totals = played.result.records, played.result.totals
    done = records.status == COMPLETED
    for times in (records.ttft_s, records.latency_s):
        assert np.all(np.isfinite(times[done]) & (times[done] >= 0.0))
        assert np.all(np.isnan(times[~done]))
    assert np.all(np.isin(records.status, range(len(STATUS_NAMES))))
    assert np.all((records.expert == -1) == (records.status == DROPPED))
    assert np.all(records.preemptions >= 0)
    for total in (totals.busy_s, totals.kv_token_s, totals.makespan_s):
        assert np.all(np.isfinite(total) & (total >= 0.0))
    metrics = summarise(records, totals, built.runs.profile, built.runs.limits)
    for name in METRICS:
        assert not np.any(metrics[name] < 0.0), name
        if name.endswith("_share") or name in ("average_qos", "share_within_limit"):
            assert not np.any(metrics[name] > 1.0 + RTOL), name  # NaN where there is no denominator
    steps = played.steps
    assert np.all(steps["first_is_sound"]), "the first observation"
    assert np.all(steps["is_sound"]), "an observation or a reward"
    assert np.all(steps["least_count"] >= 0)


def time_is_monotone(scenario: Scenario, built: Built, played: Played) -> None:
    """A first token comes before the last, and no expert is busy for longer than its run."""
    records, totals = played.result.records, played.result.totals
    assert np.all(np.diff(records.arrival_s, axis=1) >= 0.0)
    done = records.status == COMPLETED
    rtt_s = built.runs.profile.network_rtt_s[records.expert]
    late_s = records.ttft_s + rtt_s - records.latency_s
    assert np.all(late_s[done] <= ATOL_S + RTOL * records.latency_s[done])
    assert np.all(totals.busy_s <= totals.makespan_s[:, None] * (1 + RTOL) + ATOL_S)
    capacity = built.runs.profile.kv_capacity_tokens
    assert np.all(totals.kv_token_s <= capacity * totals.busy_s * (1 + RTOL) + ATOL_S)


def limits_are_kept(scenario: Scenario, built: Built, played: Played) -> None:
    """KV cache, batch and queue, at every arrival."""
    profile, load = built.runs.profile, played.result.snapshots
    assert load is not None
    assert np.all(load.kv_tokens <= profile.kv_capacity_tokens)
    assert np.all(load.running <= profile.max_running)
    assert np.all(load.running + load.waiting <= profile.max_running + profile.max_waiting)


def first_come_first_served(scenario: Scenario, built: Built, played: Played) -> None:
    """Those that an expert never preempted get their first tokens in the order of their arrivals."""
    records = played.result.records
    first_s = records.arrival_s + records.ttft_s
    for r in range(RUNS):
        for n in range(built.serving.num_experts):
            mine = (records.expert[r] == n) & (records.status[r] == COMPLETED) & (records.preemptions[r] == 0)
            slack_s = ATOL_S + RTOL * records.ttft_s[r][mine]
            assert np.all(np.diff(first_s[r][mine]) >= -slack_s[1:]), f"run {r}, expert {n}"


def no_faster_than_alone(scenario: Scenario, built: Built, played: Played) -> None:
    """A request takes at least as long as on an empty fleet."""
    records, profile = played.result.records, built.runs.profile
    by_expert = [_alone_s(profile, n, scenario.scheduler) for n in range(built.serving.num_experts)]
    for r, t in np.argwhere(records.status == COMPLETED):
        n = records.expert[r, t]
        least_s = by_expert[n](int(records.prompt_tokens[r, t]), int(records.output_tokens[r, t]))
        assert records.latency_s[r, t] >= least_s * (1 - RTOL) - ATOL_S, f"run {r}, request {t}"


def _alone_s(profile, expert, scheduler):
    """Return (prompt tokens, output tokens) -> seconds of a request alone at an expert, network included.

    A batch may make a token of context cheaper, by a table; and where prompts come in chunks, one that
    decodes beside a prompt pays the prefill's base instead of the decode's; and one that was preempted, after
    an iteration of others, gets a token by a prefill of its context, which may be cheaper than decoding.
    """
    mine = ReferenceProfile.from_fleet(profile, expert)
    fixed_s, price_s = mine.decode_law(1)
    price_s = min([price_s, *(knot[2] for knot in mine.decode_knots)])
    if BY_NAME[scheduler].splits_prompts:
        fixed_s = min(fixed_s, mine.prefill_base_s + 2 * mine.prefill_per_token_s)

    def alone_s(prompt: int, output: int) -> float:
        first_s = mine.prefill_base_s + mine.prefill_per_token_s * prompt
        first_s += mine.prefill_per_token_sq_s * prompt**2
        context = (output - 1) * prompt + output * (output - 1) / 2
        by_prefill_s = (price_s - mine.prefill_per_token_s) * (prompt + output - 1) - mine.prefill_base_s
        rest_s = (output - 1) * (fixed_s - max(by_prefill_s, 0.0)) + price_s * context
        return first_s + rest_s + mine.network_rtt_s

    return alone_s


def no_better_than_the_bound(scenario: Scenario, built: Built, played: Played) -> None:
    """No request earns more than the upper bound of its own, and rewards add up to what was earned."""
    records, limits = played.result.records, built.runs.limits
    rtt_s = built.runs.profile.network_rtt_s
    qos = np.nan_to_num(records.qos(limits, rtt_s))
    assert np.all(qos <= played.bound + 1e-6)
    # Rounding may decide whether a request is just within a limit.
    strict, lax = (
        jax.tree.map(lambda limit_s, f=f: limit_s * np.float32(f), limits) for f in (1 - 1e-5, 1 + 1e-5)
    )
    least, most = (np.nan_to_num(records.qos(each, rtt_s)).sum(axis=1) for each in (strict, lax))
    earned = played.steps["reward"].sum(axis=1)
    assert np.all((earned >= least - 1e-3) & (earned <= most + 1e-3))


def equals_the_reference(scenario: Scenario, built: Built, played: Played) -> None:
    """Status and preemptions of every request, times and totals within tolerance, near ties apart."""
    records, totals = played.result.records, played.result.totals
    for r in range(RUNS):
        outcomes, runs = played.outcomes[r], played.reference[r]
        if min(run.closest_tie_s for run in runs) <= TIE_S:
            continue
        status = [STATUS_NAMES[code] for code in records.status[r]]
        assert status == [outcome.status for outcome in outcomes], f"run {r}"
        done = records.status[r] == COMPLETED
        expected = np.array([outcome.preemptions for outcome in outcomes])
        np.testing.assert_array_equal(records.preemptions[r][done], expected[done])
        for name in ("ttft_s", "latency_s"):
            times_s = np.array([getattr(outcome, name) for outcome in outcomes], float)
            got_s = getattr(records, name)[r]
            np.testing.assert_allclose(got_s, times_s, rtol=RTOL, atol=ATOL_S, err_msg=f"run {r}: {name}")
        for name in ("busy_s", "kv_token_s"):
            sums = [getattr(run, name) for run in runs]
            np.testing.assert_allclose(getattr(totals, name)[r], sums, rtol=RTOL, atol=ATOL_S, err_msg=name)


def outputs_are_cut(scenario: Scenario, built: Built, played: Played) -> None:
    """A request's output is that of its expert, cut at the context limit."""
    records, profile = played.result.records, with_context_limit(scenario.scheduler, built.runs.profile, np)
    output = cut_at_limit(profile, built.runs.requests, np).output_tokens
    routed = records.status != DROPPED
    chosen = np.maximum(records.expert, 0)[..., None]
    mine = np.take_along_axis(output, chosen, axis=-1)[..., 0]
    np.testing.assert_array_equal(records.output_tokens[routed], mine[routed])
    total = records.prompt_tokens + mine
    capacity = np.minimum(profile.kv_capacity_tokens, profile.request_capacity_tokens)
    too_long = routed & (total > capacity[np.maximum(records.expert, 0)])
    np.testing.assert_array_equal(records.status == REJECTED_TOO_LONG, too_long)


def holds_in_the_world(scenario: Scenario, built: Built, played: Played) -> None:
    """Every request ends once in the world too, in sound times, no faster and no better than it can be."""
    if played.world is None:
        return
    records, totals = played.world.records, played.world.totals
    metrics = summarise(records, totals, built.runs.profile, built.runs.limits)
    parts = ("completed", "rejected", "rejected_too_long", "dropped", "failed")
    assert np.all(sum(metrics[name] for name in parts) == REQUESTS)
    for name in METRICS:
        assert not np.any(metrics[name] < 0.0), name
    done = records.status == COMPLETED
    for times in (records.ttft_s, records.latency_s):
        assert np.all(np.isfinite(times[done]) & (times[done] >= 0.0))
        assert np.all(np.isnan(times[~done]))
    for total in (totals.busy_s, totals.kv_token_s, totals.makespan_s):
        assert np.all(np.isfinite(total) & (total >= 0.0))
    profile = built.runs.profile
    late_s = records.ttft_s + profile.network_rtt_s[records.expert] - records.latency_s
    assert np.all(late_s[done] <= ATOL_S + RTOL * records.latency_s[done])
    failed = records.status == FAILED
    may_fail = scenario.scripted_outages or scenario.outage_per_s
    assert may_fail or not np.any(failed)
    lasts = built.runs.arrival_s[:, -1] > built.runs.arrival_s[:, 0]
    if scenario.retry and not scenario.outage_per_s:  # servers are all up at the last arrival
        assert not np.any(failed[lasts])
    if scenario.pace_log_std == 0.0:  # no server is ever faster than its profile
        by_expert = [_alone_s(profile, n, scenario.scheduler) for n in range(built.serving.num_experts)]
        for r, t in np.argwhere(done):
            alone_s = by_expert[records.expert[r, t]]
            least_s = alone_s(int(records.prompt_tokens[r, t]), int(records.output_tokens[r, t]))
            assert records.latency_s[r, t] >= least_s * (1 - RTOL) - ATOL_S, f"run {r}, request {t}"
        qos = np.nan_to_num(records.qos(built.runs.limits, profile.network_rtt_s))
        assert np.all(qos <= played.bound + 1e-6)


def what_is_known_is_true(scenario: Scenario, built: Built, played: Played) -> None:
    """Routers whose queues are live, or who know every length, decide as those that see the truth."""
    live = scenario.world == "live" or (scenario.scrape_period_s == 0.0 and scenario.world == "own")
    known = (
        scenario.world == "known" and scenario.length_log_std == 0.0 and np.isinf(scenario.scrape_period_s)
    )
    if played.world is None or scenario.has_faults or not (live or known):
        return
    mine, other = played.world.records, played.result.records
    for name in ("status", "expert", "preemptions"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(other, name), err_msg=name)
    for name in ("ttft_s", "latency_s"):
        np.testing.assert_allclose(getattr(mine, name), getattr(other, name), rtol=RTOL, err_msg=name)


INVARIANTS = (
    every_request_ends_once,
    nothing_is_negative_or_nan,
    time_is_monotone,
    limits_are_kept,
    first_come_first_served,
    no_faster_than_alone,
    no_better_than_the_bound,
    equals_the_reference,
    outputs_are_cut,
    holds_in_the_world,
    what_is_known_is_true,
)


def near_ties(played: Played) -> int:
    """Return how many traces are not compared with the reference."""
    return sum(min(run.closest_tie_s for run in runs) <= TIE_S for runs in played.reference)
