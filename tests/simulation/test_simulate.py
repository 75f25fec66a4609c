"""Simulating a policy over many runs: records against the reference, blocks and chunks without effect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.policies import policy
from qos_jax.serving import ServiceLimits, ServingConfig
from qos_jax.serving.reference import simulate_fleet
from qos_jax.simulation.blocks import cpu_block_runs
from qos_jax.simulation.records import COMPLETED, STATUS_NAMES
from qos_jax.simulation.simulate import Runs, simulate
from tests.routing.scenes import EXPERTS, LENGTH_LOG_STD, profile, table
from tests.serving.replay import SHARED_MEMORY

R, T = 5, 45
LIMIT_S = 0.06
STATUS = {name: code for code, name in enumerate(STATUS_NAMES)}


def config(scheduler="prefill_first"):
    return ServingConfig(EXPERTS, 4, 4, scheduler)


def runs(num=R, requests=T, mean_gap_s=0.03, fleet=None, simultaneous=0.1):
    """Runs of different requests, arrivals and limits."""
    rng = np.random.default_rng(0)
    gap_s = rng.exponential(mean_gap_s, (num, requests)) * (rng.random((num, requests)) >= simultaneous)
    # Instants that float32 gaps add up to, from a start other than 0.
    arrival_s = 100.0 + np.cumsum(gap_s.astype(np.float32).astype(np.float64), axis=1)
    tables = [table(seed, requests) for seed in range(num)]
    return Runs(
        profile=fleet or profile(),
        limits=ServiceLimits(np.linspace(0.04, 0.08, num).astype(np.float32)),
        length_log_std=np.tile(LENGTH_LOG_STD, (num, 1)),
        arrival_s=arrival_s,
        requests=jax.tree.map(lambda *x: np.stack(x), *tables),
        seed=np.arange(num, dtype=np.uint32),
    )


def assert_same(a, b, rtol=0.0):
    """Equal results; ``rtol`` for another program's rounding."""
    for part in ("records", "totals"):
        for field in dataclasses.fields(getattr(a, part)):
            x, y = (getattr(getattr(r, part), field.name) for r in (a, b))
            if x is None:
                assert y is None
            elif np.issubdtype(x.dtype, np.floating):
                np.testing.assert_allclose(x, y, rtol=rtol or 1e-12, err_msg=field.name)
            else:
                np.testing.assert_array_equal(x, y, err_msg=field.name)


@pytest.fixture(scope="module")
def random_result():
    return simulate(config(), policy("random"), runs(), block_runs=5, chunk_requests=16)


@pytest.mark.parametrize("scheduler", SHARED_MEMORY)
def test_records_are_the_references(scheduler):
    given = np.random.default_rng(1).integers(-1, EXPERTS, T)
    what = runs(fleet=profile(kv_capacity_tokens=[60, 200, 110]))  # expert 0 can't hold the longest
    result = simulate(
        config(scheduler), policy("assigned", assignment=jnp.asarray(given)), what, chunk_requests=16
    )
    records = result.records
    assert set(np.unique(records.status)) == set(STATUS.values()) - {STATUS["failed"]}
    assert records.preemptions.sum() > 0
    for r in range(R):
        requests = jax.tree.map(lambda x, r=r: x[r], what.requests)
        outcomes, expert_runs = simulate_fleet(
            what.profile, what.arrival_s[r], requests.prompt_tokens, requests.output_tokens, given, scheduler
        )
        mine = records.at(r)
        np.testing.assert_array_equal(mine.status, [STATUS[o.status] for o in outcomes])
        np.testing.assert_array_equal(mine.expert, given)
        np.testing.assert_array_equal(mine.preemptions, [o.preemptions for o in outcomes])
        for name in ("ttft_s", "latency_s"):
            expected = np.array([getattr(o, name) for o in outcomes], float)  # None becomes NaN
            np.testing.assert_allclose(getattr(mine, name), expected, rtol=1e-4, err_msg=name)
        np.testing.assert_array_equal(mine.arrival_s, what.arrival_s[r])
        np.testing.assert_array_equal(mine.prompt_tokens, requests.prompt_tokens)
        routed = given >= 0
        at = np.arange(T)[routed], given[routed]
        np.testing.assert_array_equal(mine.output_tokens[routed], requests.output_tokens[at])
        np.testing.assert_array_equal(mine.quality[routed], requests.quality[at])
        assert np.all(np.isnan(mine.quality[~routed]))
        totals = result.totals
        np.testing.assert_allclose(totals.busy_s[r], [x.busy_s for x in expert_runs], rtol=1e-4)
        np.testing.assert_allclose(totals.kv_token_s[r], [x.kv_token_s for x in expert_runs], rtol=1e-4)
        ends = [what.arrival_s[r, o.request_id] + o.latency_s for o in outcomes if o.status == "completed"]
        last = max(*ends, what.arrival_s[r, -1])
        assert totals.makespan_s[r] == pytest.approx(last - what.arrival_s[r, 0], rel=1e-5)


def test_every_request_is_accounted_for(random_result):
    status = random_result.records.status
    counts = [np.sum(status == code, axis=1) for code in STATUS.values()]
    np.testing.assert_array_equal(np.sum(counts, axis=0), T)
    assert np.array_equal(np.isfinite(random_result.records.latency_s), status == COMPLETED)
    assert np.all(random_result.rounds > 0)


@pytest.mark.parametrize("chunk_requests", [9, 44, 64])
def test_chunks_make_no_difference(random_result, chunk_requests):
    """A whole number of chunks, one request in the last, one chunk larger than the run."""
    other = simulate(config(), policy("random"), runs(), block_runs=5, chunk_requests=chunk_requests)
    # Sums per chunk are float32, and other chunks sum other parts.
    assert_same(random_result, other, rtol=1e-5)
    np.testing.assert_array_equal(random_result.rounds, other.rounds)


def test_threads_make_no_difference(random_result):
    counts = []
    other = simulate(
        config(),
        policy("random"),
        runs(),
        block_runs=2,
        chunk_requests=16,
        keep_snapshots=True,
        on_progress=counts.append,
        workers=3,
    )
    same = simulate(
        config(), policy("random"), runs(), block_runs=2, chunk_requests=16, keep_snapshots=True, workers=1
    )
    assert_same(other, same)
    assert_same(random_result, other, rtol=1e-5)
    np.testing.assert_array_equal(other.snapshots.running, same.snapshots.running)
    assert sum(counts) == R * T


@pytest.mark.parametrize("block_runs", [2, 9, None])
def test_blocks_make_no_difference(random_result, block_runs):
    """Also blocks that must be filled up, and a block larger than the runs."""
    other = simulate(config(), policy("random"), runs(), block_runs=block_runs, chunk_requests=16)
    assert_same(random_result, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("experts", "slots", "block"),
    [(1, 2, 64), (6, 32, 64), (7, 32, 32), (12, 32, 32), (6, 128, 16), (64, 32, 4), (500, 500, 4)],
)
def test_the_more_slots_a_run_has_the_fewer_share_a_block(experts, slots, block):
    assert cpu_block_runs(ServingConfig(experts, slots // 2, slots // 2)) == block


def test_equal_seeds_give_equal_runs_and_others_do_not(random_result):
    again = simulate(config(), policy("random"), runs(), block_runs=5, chunk_requests=16)
    assert_same(random_result, again)
    reseeded = dataclasses.replace(runs(), seed=np.arange(R, dtype=np.uint32) + 100)
    other = simulate(config(), policy("random"), reseeded, block_runs=5, chunk_requests=16)
    assert not np.array_equal(random_result.records.expert, other.records.expert)
    # The policy's randomness is its own: what arrives is the same.
    np.testing.assert_array_equal(random_result.records.arrival_s, other.records.arrival_s)
    assert len({tuple(row) for row in random_result.records.expert}) == R


def test_snapshots_show_the_load_before_each_arrival():
    given = np.random.default_rng(2).integers(0, EXPERTS, T)
    what = runs()
    chosen = policy("assigned", assignment=jnp.asarray(given))
    plain = simulate(config(), chosen, what, block_runs=2, chunk_requests=16)
    kept = simulate(config(), chosen, what, block_runs=2, chunk_requests=16, keep_snapshots=True)
    assert plain.snapshots is None
    assert_same(plain, kept, rtol=1e-6)
    shots = kept.snapshots
    for name in ("running", "waiting", "kv_tokens"):
        assert getattr(shots, name).shape == (R, T, EXPERTS)
    np.testing.assert_array_equal(shots.running[:, 0] + shots.waiting[:, 0], 0)
    assert np.all(shots.running <= what.profile.max_running)
    assert np.all(shots.kv_tokens <= what.profile.kv_capacity_tokens)
    assert np.all((shots.kv_tokens > 0) == (shots.running > 0))
    # In the system before each arrival: routed here before, and not gone yet.
    records = kept.records
    end_s = records.arrival_s + records.latency_s - what.profile.network_rtt_s[records.expert]
    for n in range(EXPERTS):
        mine = (records.expert == n) & (records.status == COMPLETED)
        present = np.array(
            [
                [np.sum(mine[r, :t] & (end_s[r, :t] > what.arrival_s[r, t])) for t in range(T)]
                for r in range(R)
            ]
        )
        np.testing.assert_array_equal((shots.running + shots.waiting)[:, :, n], present)


def test_progress_adds_up_to_all_requests():
    seen = []
    simulate(config(), policy("random"), runs(), block_runs=2, chunk_requests=16, on_progress=seen.append)
    assert sum(seen) == R * T
    assert len(seen) == 3 * 3


def test_a_single_request_and_requests_that_are_all_turned_away():
    one = runs(num=1, requests=1)
    result = simulate(config(), policy("round_robin"), one, chunk_requests=16)
    assert result.records.status.tolist() == [[COMPLETED]]
    assert result.totals.makespan_s[0] == pytest.approx(result.records.latency_s[0, 0])
    tiny = runs(num=1, fleet=profile(kv_capacity_tokens=[2, 2, 2]))
    result = simulate(config(), policy("round_robin"), tiny, chunk_requests=16)
    few = result.records.status == COMPLETED
    assert few.sum() < T
    prompt_and_output = result.records.prompt_tokens + result.records.output_tokens
    assert np.all(prompt_and_output[few] <= 2)
    assert np.all(np.isnan(result.records.latency_s[~few]))
