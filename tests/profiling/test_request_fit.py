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
from qos_jax.profiling.request_fit import (
    STEP,
    check_requests,
    num_replays,
    replay_requests,
    request_quality,
    typical_load,
)
from tests.profiling.logs import LIMITS, TRUE, requests

QUICK = SearchConfig(candidates=12, starts=2, recoveries=1, evaluations=5)
ONE = dataclasses.replace(QUICK, starts=1, recoveries=0)


def mean_ratios(log, found, rows=None):
    rows = np.ones(log.num_requests, bool) if rows is None else rows
    return [
        quality.mean_ratio for quality in request_quality(log, found.ttft_s, found.latency_s, rows).values()
    ]


@pytest.fixture(scope="module")
def exact():
    log = requests()
    return log, fit_requests(log, LIMITS, {}, QUICK)


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
    check_near(log, found)
    np.testing.assert_allclose(mean_ratios(log, found), 1.0, atol=0.01)


def test_starts_are_sorted_and_a_search_goes_on_where_it_was_stopped(exact):
    log, found = exact
    assert [start.cost for start in found.starts] == sorted(start.cost for start in found.starts)
    short, done, counted = dataclasses.replace(QUICK, evaluations=1), [], []
    whole = fit_requests(log, LIMITS, {}, short, on_start=done.append, on_progress=counted.append)
    assert len(done) == short.starts + short.recoveries
    assert sum(counted) <= num_replays(short, {})
    rest = []
    again = fit_requests(log, LIMITS, {}, short, finished=done[:2], on_start=rest.append)
    assert len(rest) == 1
    np.testing.assert_array_equal(again.fit.value, whole.fit.value)
    np.testing.assert_array_equal(again.fit.covariance, whole.fit.covariance)
    fit_requests(log, LIMITS, {}, short, finished=done, on_start=lambda start: pytest.fail("started again"))


def test_a_noisy_log_gives_them_within_the_stated_error():
    limits = dataclasses.replace(LIMITS, scheduler="prefill_first")
    log = requests(noise=0.02, seed=3, limits=limits)
    found = fit_requests(log, limits, {}, dataclasses.replace(QUICK, recoveries=2))
    check_near(log, found)
    assert np.all(np.abs(found.fit.value - TRUE) < 6 * found.fit.standard_error + 0.05 * TRUE)
    np.testing.assert_allclose(mean_ratios(log, found), 1.0, atol=0.02)


def test_requests_not_fitted_still_load_the_server():
    log = requests(noise=0.01, seed=5)
    seen = np.arange(log.num_requests) < 50
    found = fit_requests(log, LIMITS, {}, ONE, rows=seen)
    assert found.ttft_s.shape == (log.num_requests,)
    np.testing.assert_allclose(mean_ratios(log, found, ~seen), 1.0, atol=0.06)


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
        fit_requests(requests(count=20, **columns), LIMITS, fixed, QUICK)
    for text in (*says, "give --fix="):
        assert text in str(error.value)


def test_giving_one_of_the_confused_is_the_remedy():
    log = requests(count=20, arrival_s=APART)
    found = fit_requests(log, LIMITS, {"decode_per_seq_s": TRUE[4]}, ONE)
    np.testing.assert_allclose(found.fit.value[[3, 5]], TRUE[[3, 5]], rtol=0.05)
    assert found.fit.confidence("decode_per_seq_s") == "fixed"


def test_all_given_is_a_replay():
    log = requests(count=12)
    found = fit_requests(log, LIMITS, dict(zip(COEFFICIENTS, TRUE, strict=True)), QUICK)
    np.testing.assert_array_equal(found.fit.value, TRUE)
    np.testing.assert_allclose(found.latency_s, log.latency_s, rtol=1e-9)
    assert not found.fit.covariance.any()


def test_requests_the_server_cannot_have_served():
    with pytest.raises(InputError, match="field 'kv_capacity_tokens': 500 tokens hold no request of"):
        check_requests(requests(), dataclasses.replace(LIMITS, kv_capacity_tokens=500), {})
    with pytest.raises(InputError, match="9 requests to fit are too few"):
        check_requests(requests(count=9), LIMITS, {})


def test_the_recorded_run_of_vllm_is_reproduced(shared):
    """Llama-3.1-8B on an RTX 4090, chunked prefill, overloaded (see tests/serving/test_vllm_run.py).

    Nothing but the run's own limits is given. Of single coefficients the log tells ``decode_base_s``; under
    overload the memory is full, so batch and context hardly vary, and it tells their sum.
    """
    folder = shared / "data"
    log = read_request_log(folder / "vllm_rtx4090" / "requests.jsonl")
    limits = ServerLimits("chunked_prefill", 256, 2048, 41_408)
    search = SearchConfig(candidates=12, starts=1, recoveries=0, evaluations=8, steps=(STEP,))
    found = fit_requests(log, limits, {}, search)
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


def test_replays_are_those_of_the_reference():
    log = requests(count=12)
    ttft_s, latency_s = replay_requests(log, LIMITS, TRUE)
    np.testing.assert_allclose(ttft_s, log.ttft_s, rtol=1e-9)
    np.testing.assert_allclose(latency_s, log.latency_s, rtol=1e-9)
