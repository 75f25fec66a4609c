"""Metrics: a run worked out by hand, identities on random runs, and runs that leave figures undefined."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos_jax.serving import ServiceLimits
from qos_jax.simulation.metrics import METRICS, summarise, traced_summarise
from qos_jax.simulation.records import (
    FAILED,
    REJECTED_TOO_LONG,
    STATUS_NAMES,
    RequestRecords,
    RunTotals,
    TracedRecords,
)


def test_hand_worked_run(records, totals, profile, limit_s):
    figures = summarise(records, totals, profile, limit_s)
    assert list(figures) == list(METRICS)
    expected = {
        "average_qos": 0.75 / 6,
        "share_within_limit": 2 / 6,
        "mean_quality": 2.75 / 4,
        "latency_per_token_mean_s": (0.05 + 0.2 + 0.08 + 1.0) / 4,
        "latency_per_token_p50_s": 0.14,
        "latency_per_token_p95_s": 0.2 + 0.85 * 0.8,
        "ttft_mean_s": 1.625 / 4,
        "ttft_p50_s": 0.375,
        # (0.5 - 0.125) / 9, (1 - 0.25 rtt - 0.25) / 4, (2 - 0.5) / 24; one output token has no TPOT
        "tpot_mean_s": (0.375 / 9 + 0.125 + 0.0625) / 3,
        "tpot_p50_s": 0.0625,
        "e2e_latency_mean_s": 4.5 / 4,
        "e2e_latency_p99_s": 1.0 + 0.97 * 1.0,
        "arrived": 6,
        "completed": 4,
        "rejected": 1,
        "dropped": 1,
        "completed_share": 4 / 6,
        "rejected_share": 1 / 6,
        "dropped_share": 1 / 6,
        "preemptions_per_request": 0.5,
        "kv_utilisation": 600 / (1500 * 4),
        "busy_share": 3 / 8,
        "qos_per_busy_s": 0.75 / 3,
        "qos_per_joule": 0.75 / (2 * 300 + 2 * 50 + 1 * 200 + 3 * 25),
        "goodput_per_s": 0.5,
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-6), name


def test_every_limit_counts_by_hand(records, totals, profile, limit_s):
    """TTFTs .125, .25, .5, .75 s; TPOTs .0417, .125, .0625 s and none; E2E .5, 1, 2, 1 s; L keeps two."""
    limits = ServiceLimits(limit_s, ttft_limit_s=0.25, tpot_limit_s=0.0625, e2e_limit_s=1.0)
    figures = summarise(records, totals, profile, limits)
    expected = {
        "average_qos": 0.5 / 6,  # the first alone keeps all
        "share_within_limit": 1 / 6,
        "share_within_latency_per_token": 2 / 6,
        "share_within_ttft": 2 / 6,
        "share_within_tpot": 3 / 6,
        "share_within_e2e": 3 / 6,
        "goodput_per_s": 0.25,
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-6), name
    traced = traced_summarise(jax.tree.map(jnp.asarray, _traced(records)), totals, profile, limits)
    for name, value in expected.items():
        assert float(traced[name]) == pytest.approx(value, rel=1e-6), name
    np.testing.assert_allclose(records.qos(limits, profile.network_rtt_s), [0.5, 0, 0, 0, 0, 0])
    # A limit that is not set is kept by all that completed, as is an infinite one.
    plain = summarise(records, totals, profile, limit_s)
    endless = summarise(records, totals, profile, ServiceLimits(limit_s, *[math.inf] * 3))
    assert plain["share_within_ttft"] == pytest.approx(4 / 6)
    for name in METRICS:
        np.testing.assert_array_equal(endless[name], plain[name], name)


def _traced(records):
    """Return the records with the fields that a program's have."""
    names = TracedRecords.__dataclass_fields__
    return TracedRecords(**{name: getattr(records, name) for name in names})


def test_every_metric_is_documented():
    for name, metric in METRICS.items():
        assert metric.label, name
        assert metric.description, name
        assert metric.better in ("higher", "lower", "neither")
        # a dimensional name carries its unit
        assert not metric.unit.startswith("s") or name.endswith("_s"), name


@st.composite
def _runs(draw):
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    status = rng.choice(len(STATUS_NAMES), size=shape, p=rng.dirichlet([1] * len(STATUS_NAMES)))
    output = rng.integers(1, 30, shape)
    ttft = rng.random(shape) * 2
    latency = ttft + 0.5 + output * rng.random(shape) * 0.2
    run = RequestRecords(
        status,
        np.where(status == 2, -1, rng.integers(0, 2, shape)),
        np.sort(rng.random(shape) * 10, -1),
        rng.integers(1, 100, shape),
        output,
        np.where(status == 0, ttft, np.nan),
        np.where(status == 0, latency, np.nan),
        rng.poisson(0.3, shape),
        np.where(status == 2, np.nan, rng.random(shape)),
    )
    makespan = rng.random(shape[0]) * 20 + 1
    busy = rng.random((shape[0], 2)) * makespan[:, None]
    return run, RunTotals(busy, busy * rng.random((shape[0], 2)) * 500, makespan), rng.random() * 0.4


@given(_runs())
def test_identities(profile, run):
    records, totals, limit_s = run
    figures = summarise(records, totals, profile, limit_s)
    runs = records.status.shape[:1]
    assert all(values.shape == runs and values.dtype == np.float64 for values in figures.values())
    np.testing.assert_allclose(sum(figures[name] for name in STATUS_NAMES), figures["arrived"])
    np.testing.assert_allclose(sum(figures[f"{name}_share"] for name in STATUS_NAMES), 1)
    np.testing.assert_array_equal(figures["rejected_too_long"], (records.status == REJECTED_TOO_LONG).sum(-1))
    np.testing.assert_array_equal(figures["failed"], (records.status == FAILED).sum(-1))
    assert (figures["average_qos"] <= figures["share_within_limit"] + 1e-12).all()
    assert (figures["share_within_limit"] <= figures["completed_share"] + 1e-12).all()
    some = figures["completed"] > 0
    served_quality = figures["mean_quality"] * figures["completed_share"]
    assert (figures["average_qos"][some] <= served_quality[some] + 1e-9).all()
    for name in ("busy_share", "kv_utilisation"):
        assert ((figures[name] >= 0) & (figures[name] <= 1 + 1e-12)).all()
    everything = summarise(records, totals, profile, np.inf)
    np.testing.assert_allclose(everything["share_within_limit"], figures["completed_share"])
    np.testing.assert_allclose(everything["average_qos"][some], served_quality[some], rtol=1e-6)


@given(_runs())
def test_percentiles_are_numpys(profile, run):
    records, totals, limit_s = run
    figures = summarise(records, totals, profile, limit_s)
    for i in range(records.status.shape[0]):
        ttft = records.ttft_s[i][records.status[i] == 0].astype(np.float64)
        for p in (50, 95, 99):
            wanted = np.percentile(ttft, p) if ttft.size else np.nan
            np.testing.assert_allclose(figures[f"ttft_p{p}_s"][i], wanted, rtol=1e-6)


def test_leading_axes_are_runs_of_their_own(records, totals, profile):
    fields = {name: values for name, values in vars(records).items() if values is not None}
    many = RequestRecords(**{name: np.stack([[v] * 3] * 2) for name, v in fields.items()})
    sums = RunTotals(
        *(np.stack([[v] * 3] * 2) for v in (totals.busy_s, totals.kv_token_s, totals.makespan_s))
    )
    limits = np.array([0.05, 0.1])[:, None]
    figures = summarise(many, sums, profile, limits)
    for i, limit_s in enumerate((0.05, 0.1)):
        alone = summarise(records, totals, profile, limit_s)
        for name, values in figures.items():
            assert values.shape == (2, 3)
            np.testing.assert_allclose(values[i], alone[name], err_msg=name)


def test_nothing_completed_leaves_figures_undefined(profile):
    nan = np.full(2, np.nan)
    run = RequestRecords([2, 2], [-1, -1], [0, 1], [5, 5], [-1, -1], nan, nan, [0, 0], nan)
    figures = summarise(run, RunTotals([0.0, 0.0], [0.0, 0.0], 0.0), profile, 0.1)
    assert figures["average_qos"] == 0
    assert figures["dropped_share"] == 1
    for name in ("mean_quality", "ttft_p95_s", "qos_per_busy_s", "qos_per_joule", "goodput_per_s"):
        assert np.isnan(figures[name]), name
