"""Request logs of the serving model give back the coefficients behind them; a real one is replayed."""

import csv
import dataclasses

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.profiling import (
    COEFFICIENTS,
    CoefficientFit,
    SearchConfig,
    ServerLimits,
    fit_requests,
    read_request_log,
)
from qos_jax.profiling.coefficients import typical_iterations
from qos_jax.profiling.prediction import request_quality
from qos_jax.profiling.replay import Clock, replay_requests
from qos_jax.profiling.replay_search import typical_load
from qos_jax.profiling.request_fit import check_requests, num_replays
from tests.profiling.logs import LIMITS, TRUE, requests

QUICK = SearchConfig(starts=3, evaluations=5, recoveries=1)
ONE = dataclasses.replace(QUICK, starts=1, recoveries=0)


def mean_ratios(log, found, rows=None):
    masks = None if rows is None else [rows]
    return [quality.mean_ratio for quality in request_quality([log], found.replays, masks).values()]


@pytest.fixture(scope="module")
def exact():
    log = requests()
    return log, fit_requests([log], LIMITS, {}, SearchConfig())


def check_near(log, found):
    """The prefill and decode times of the log's own loads are found, single coefficients as far as stated."""
    batch, context = typical_load(log, LIMITS)
    prompt = float(log.prompt_tokens.mean())
    blank = np.zeros((6, 6))
    for ours, true, rel in zip(
        typical_iterations(found.fit, batch, context, prompt),
        typical_iterations(CoefficientFit(TRUE, blank), batch, context, prompt),
        (0.15, 0.05),
        strict=True,
    ):
        assert ours["duration_s"] == pytest.approx(true["duration_s"], rel=rel)
    assert found.fit.value[3] == pytest.approx(TRUE[3], rel=0.08)
    assert found.fit.confidence("decode_base_s") == "identified"


def test_an_exact_log_gives_the_coefficients(exact):
    log, found = exact
    np.testing.assert_allclose(found.fit.value, TRUE, rtol=1e-4)
    assert {found.fit.confidence(name) for name in COEFFICIENTS} == {"identified"}
    assert np.all((found.fit.low <= TRUE) & (found.fit.high >= TRUE))
    np.testing.assert_allclose(found.replays[0].ttft_s, log.ttft_s, rtol=1e-4)


def drawn_case(seed):
    """A server, a load and a log of it, all drawn; times rounded as a float32 simulator writes them."""
    rng = np.random.default_rng(seed)
    value = TRUE * np.exp(rng.uniform(-1.5, 1.5, 6))
    scheduler = ("chunked_prefill", "prefill_first")[seed % 2]
    limits = ServerLimits(scheduler, int(rng.choice([4, 16, 64])), int(rng.choice([256, 2048])), 9000)
    columns = {"output_tokens": rng.integers(1, 60, 60)}
    crowded = requests(60, seed=seed, value=value, limits=limits, rate_per_s=1e6, **columns)
    rate_per_s = rng.uniform(0.3, 1.3) * 60 / crowded.last_token_s.max()
    log = requests(60, seed=seed, value=value, limits=limits, rate_per_s=rate_per_s, **columns)
    first_s = log.arrival_s + np.float32(log.ttft_s)
    last_s = log.arrival_s + np.float32(log.latency_s)
    return dataclasses.replace(log, first_token_s=first_s, last_token_s=last_s), limits, value


@pytest.mark.parametrize("seed", range(6))
def test_drawn_servers_are_recovered_within_their_intervals(seed):
    log, limits, value = drawn_case(seed)
    found = fit_requests([log], limits, {}, SearchConfig())
    assert found.fit.converged
    assert np.all((found.fit.low <= value) & (value <= found.fit.high))
    replayed = found.replays[0].ttft_s
    assert np.mean(np.abs(replayed / log.ttft_s - 1)) < 0.005


def test_the_log_of_our_own_simulator(shared):
    """The minimum is narrow: the coefficient of context 2.6 times the truth was once called identified."""
    log = read_request_log(shared / "cases" / "own_simulator_log.csv")
    found = fit_requests([log], ServerLimits("chunked_prefill", 16, 2048, 41_408), {}, SearchConfig())
    truth = [0.015171001, 4.898772e-05, 2.1967404e-08, 0.016950104, 3.8916856e-05, 1.5730166e-07]
    np.testing.assert_allclose(found.fit.value, truth, rtol=2e-3)


def test_several_logs_are_one_fit():
    logs = [requests(30, seed=1, rate_per_s=1.0), requests(40, seed=2, rate_per_s=4.0)]
    found = fit_requests(logs, LIMITS, {}, SearchConfig())
    np.testing.assert_allclose(found.fit.value, TRUE, rtol=1e-3)
    assert [len(replay.ttft_s) for replay in found.replays] == [30, 40]


def test_a_search_goes_on_where_it_was_stopped():
    log = requests(30, noise=0.05)
    done, counted = [], []
    whole = fit_requests([log], LIMITS, {}, QUICK, on_start=done.append, on_progress=counted.append)
    assert [start.error for start in whole.starts] == sorted(start.error for start in whole.starts)
    assert len(done) == QUICK.starts + QUICK.recoveries
    assert sum(counted) <= num_replays(QUICK)
    rest = []
    again = fit_requests([log], LIMITS, {}, QUICK, finished=done[:2], on_start=rest.append)
    assert len(rest) == len(done) - 2
    np.testing.assert_array_equal(again.fit.value, whole.fit.value)
    np.testing.assert_array_equal(again.fit.covariance, whole.fit.covariance)


def test_a_noisy_log_gives_them_within_the_stated_error():
    limits = dataclasses.replace(LIMITS, scheduler="prefill_first")
    log = requests(noise=0.02, seed=3, limits=limits)
    found = fit_requests([log], limits, {}, SearchConfig(starts=4, recoveries=2))
    assert np.all(np.abs(found.fit.value - TRUE) < 4 * found.fit.standard_error)
    np.testing.assert_allclose(mean_ratios(log, found), 1.0, atol=0.03)


def test_nothing_is_identified_where_starts_disagree():
    log = requests(40, noise=0.3, seed=4)
    found = fit_requests([log], LIMITS, {}, ONE)
    assert not found.fit.converged
    assert {found.fit.confidence(name) for name in COEFFICIENTS} == {"not converged"}


def test_requests_not_fitted_still_load_the_server():
    log = requests(seed=5)
    seen = np.arange(log.num_requests) < 50
    found = fit_requests([log], LIMITS, {}, SearchConfig(), rows=[seen])
    assert found.replays[0].ttft_s.shape == (log.num_requests,)
    np.testing.assert_allclose(mean_ratios(log, found, ~seen), 1.0, atol=0.001)


APART = 30.0 * np.arange(20)
UNTOLD = {
    "no second token": (
        {"output_tokens": np.ones(20, int), "arrival_s": APART},
        (
            "no row depends on decode_base_s, decode_per_seq_s and decode_per_context_token_s",
            "no request has a second token",
        ),
    ),
    "nobody meets": (
        {"arrival_s": APART},
        ("decode_base_s and decode_per_seq_s", "no two requests overlap"),
    ),
    "one prompt length": (
        {"arrival_s": APART, "prompt_tokens": np.full(20, 300)},
        ("prefill_base_s, prefill_per_token_s", "every request has 300 prompt tokens"),
    ),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_what_a_log_cannot_tell_is_named(name):
    columns, says = UNTOLD[name]
    fixed = {} if name != "one prompt length" else {"decode_per_seq_s": 1e-4}
    with pytest.raises(InputError, match=r"mine\.jsonl, field '") as error:
        fit_requests([requests(count=20, **columns)], LIMITS, fixed, QUICK)
    for text in (*says, "give --fix="):
        assert text in str(error.value)


def test_giving_one_of_the_confused_is_the_remedy():
    log = requests(count=20, arrival_s=APART)
    found = fit_requests([log], LIMITS, {"decode_per_seq_s": TRUE[4]}, ONE)
    np.testing.assert_allclose(found.fit.value[[3, 5]], TRUE[[3, 5]], rtol=0.05)
    assert found.fit.confidence("decode_per_seq_s") == "fixed"


def test_all_given_is_a_replay():
    log = requests(count=12)
    found = fit_requests([log], LIMITS, dict(zip(COEFFICIENTS, TRUE, strict=True)), QUICK)
    np.testing.assert_array_equal(found.fit.value, TRUE)
    np.testing.assert_allclose(found.replays[0].latency_s, log.latency_s, rtol=1e-9)
    assert not found.fit.covariance.any()


def test_requests_the_server_cannot_have_served():
    with pytest.raises(InputError, match="field 'kv_capacity_tokens': 500 tokens hold no request of"):
        check_requests([requests()], dataclasses.replace(LIMITS, kv_capacity_tokens=500), {})
    slots = dataclasses.replace(LIMITS, scheduler="llama_cpp", kv_capacity_tokens=8000)
    with pytest.raises(
        InputError, match=r"field 'kv_capacity_tokens': 500 tokens of a slot \(/ max_running\) "
    ):
        check_requests([requests()], slots, {})
    limited = dataclasses.replace(LIMITS, context_limit_tokens=400)
    with pytest.raises(InputError, match="field 'context_limit_tokens': 400 tokens hold no request of"):
        check_requests([requests()], limited, {})
    with pytest.raises(InputError, match="9 requests to fit are too few"):
        check_requests([requests(count=9)], LIMITS, {})


def test_the_recorded_run_of_vllm_is_reproduced(shared):
    """Llama-3.1-8B on an RTX 4090, chunked prefill, overloaded (see tests/serving/test_vllm_run.py).

    Nothing but the run's own limits is given. Of single coefficients the log tells ``decode_base_s``; under
    overload the memory is full, so batch and context hardly vary, and it tells their sum.
    """
    folder = shared / "data"
    log = read_request_log(folder / "vllm_rtx4090" / "requests.jsonl")
    limits = ServerLimits("chunked_prefill", 256, 2048, 41_408)
    found = fit_requests([log], limits, {}, ONE)
    np.testing.assert_allclose(mean_ratios(log, found), 1.0, atol=0.03)
    with (folder / "iteration_time_fits.csv").open(newline="") as file:
        rows = {row["config"]: row for row in csv.DictReader(file)}
    fit = rows["meta-llama/Llama-3.1-8B @ RTX4090"]
    layers = np.array([float(fit[f"{name}_w"]) / 1e3 for name in ("p0", "k1", "kq", "c0", "c1", "k2")])
    batch, context = typical_load(log, limits)
    decode = typical_iterations(found.fit, batch, context, 800.0)[1]
    layer_profile_s = float(layers[3:] @ [1.0, batch, context])
    assert decode["duration_s"] == pytest.approx(layer_profile_s, rel=0.05)
    assert decode["standard_error_s"] < 0.05 * decode["duration_s"]


def test_times_are_linear_in_the_coefficients():
    """Of a free replay and of one that follows the log's clock, as long as no events swap."""
    log = requests(count=12)
    everyone = np.ones(12, bool)
    for clock in (None, Clock(everyone), Clock(everyone, paced=True)):
        replay = replay_requests(log, LIMITS, TRUE, clock)
        np.testing.assert_allclose(replay.ttft_offset_s + replay.ttft_rows @ TRUE, replay.ttft_s, rtol=1e-9)
        np.testing.assert_allclose(replay.decode_rows @ TRUE, replay.latency_s - replay.ttft_s, rtol=1e-9)
    free = replay_requests(log, LIMITS, TRUE)
    np.testing.assert_allclose(free.ttft_s, log.ttft_s, rtol=1e-9)
    near = TRUE * (1 + 1e-7)
    moved = replay_requests(log, LIMITS, near)
    np.testing.assert_allclose(moved.ttft_s, free.ttft_offset_s + free.ttft_rows @ near, rtol=1e-9)
    np.testing.assert_allclose(moved.decode_rows, free.decode_rows)
