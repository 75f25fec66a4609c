"""Contents of cases: a table's own rows, near recorded lengths where it has any, the same at every rate."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases, draw_arrivals
from qos_jax.workload import (
    NamedTable,
    RequestTable,
    Trace,
    experts_named,
    fleet_path,
    load_calibration,
    load_length_histogram,
    read_fleet,
    sample_lengths,
    sample_table,
)
from qos_jax.workload.drawn_requests import draw_contents, known_length_log_std, shuffle_predictions

ROWS = 300
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module")
def fleet():
    return read_fleet(fleet_path("edge6"))


@pytest.fixture(scope="module")
def named(fleet) -> NamedTable:
    """Rows that their predicted quality tells apart."""
    calibration = experts_named(load_calibration(), fleet.names)
    table = jax.device_get(jax.jit(sample_table, static_argnums=2)(jax.random.key(1), calibration, ROWS))
    label = np.repeat(np.arange(ROWS, dtype=np.float32)[:, None] / ROWS, fleet.num_experts, axis=1)
    std = np.linspace(0.3, 0.8, fleet.num_experts, dtype=np.float32)
    return NamedTable(fleet.names, table.replace(predicted_quality=label), std, None, "mine.npz")


def rows_of(drawn: RequestTable) -> np.ndarray:
    return np.rint(np.asarray(drawn.predicted_quality)[..., 0] * ROWS).astype(int)


def trace(factor: float = 1.0) -> Trace:
    tokens = (np.array([60, 90, 200, 60, 90]) * factor).astype(np.int32)
    return Trace(np.array([0.0, 1.0, 3.0, 4.0, 4.5]), tokens, 4 * tokens, "my.csv")


def assert_whole_rows(drawn: RequestTable, named: NamedTable) -> None:
    """Every request is a row of the table, in all that it has."""
    rows = rows_of(drawn)
    for name, value in vars(named.table).items():
        if value is None:  # no prefixes
            assert getattr(drawn, name) is None
        else:
            np.testing.assert_array_equal(getattr(drawn, name), value[rows])


@pytest.mark.parametrize("workload", ["poisson", "azure_conv", "trace"])
def test_requests_are_rows_and_arrivals_as_ever(fleet, named, workload):
    config = CaseConfig(workloads=(workload,), arrival_rates=(2.0, 5.0), seeds=2, num_requests=50)
    slow, fast = build_cases(config, fleet, named, 0.07, trace())
    for case in (slow, fast):
        arrival_s = case.runs.arrival_s
        if workload == "trace":
            expected_s = np.tile(trace().arrival_s * trace().rate_per_s / case.arrival_rate_per_s, (2, 1))
        else:
            expected_s = draw_arrivals(workload, case.arrival_rate_per_s, config)
        np.testing.assert_allclose(arrival_s, expected_s)
        np.testing.assert_array_equal(case.runs.length_log_std, [named.length_log_std] * 2)
        assert_whole_rows(case.runs.requests, named)
    slow_rows, fast_rows = (rows_of(case.runs.requests) for case in (slow, fast))
    np.testing.assert_array_equal(slow_rows, fast_rows)
    assert not np.array_equal(slow_rows[0], slow_rows[1])


def test_predictions_shuffled_are_those_of_others_of_the_run_and_anew_in_every_run(fleet, named):
    config = CaseConfig(workloads=("poisson",), arrival_rates=(2.0, 5.0), seeds=2, num_requests=200)
    table = dataclasses.replace(
        named.table, predicted_output_tokens=1.0 + ROWS * named.table.predicted_quality
    )
    tied = dataclasses.replace(named, table=table)
    (given, _), (slow, fast) = (
        [case.runs for case in build_cases(config, fleet, tied, 0.07, shuffled=shuffled)]
        for shuffled in (False, True)
    )
    for field in ("prompt_tokens", "quality", "output_tokens"):
        np.testing.assert_array_equal(getattr(slow.requests, field), getattr(given.requests, field))
    np.testing.assert_array_equal(slow.arrival_s, given.arrival_s)
    before, after = rows_of(given.requests), rows_of(slow.requests)
    np.testing.assert_array_equal(np.sort(after), np.sort(before))
    assert np.mean(after == before) < 0.05
    np.testing.assert_array_equal(after, rows_of(fast.requests))  # at every rate alike
    # A whole row's, quality and length together.
    np.testing.assert_allclose(
        slow.requests.predicted_output_tokens, 1.0 + ROWS * slow.requests.predicted_quality, rtol=1e-6
    )
    same = draw_contents(KEYS[np.array([0, 0])], tied, None, 50)
    one, other = rows_of(shuffle_predictions(KEYS, same))
    assert np.any(one != other)


def test_all_rows_are_drawn(named):
    rows = rows_of(draw_contents(KEYS, named, None, 4000))
    assert rows.shape == (2, 4000)
    for run in rows:
        assert len(np.unique(run)) == ROWS


def test_recorded_lengths_are_kept_near(named):
    """Nearer than rows drawn evenly, though they keep their own lengths."""
    lengths = trace()
    near = draw_contents(KEYS, named, lengths, lengths.num_requests)
    even = draw_contents(KEYS, named, None, lengths.num_requests)

    def apart(drawn):
        return np.abs(np.log(drawn.prompt_tokens / lengths.prompt_tokens)).mean()

    assert apart(near) < apart(even)
    assert np.any(near.prompt_tokens != lengths.prompt_tokens)


def test_a_histograms_lengths_are_those_of_figures(fleet, named):
    """Both sources are asked for the same recorded lengths, and a table of all lengths has them."""
    calibration = experts_named(load_calibration(), fleet.names)
    histogram = load_length_histogram("azure_conv")
    made_up = draw_contents(KEYS, calibration, histogram, 400)
    prompt, output = jax.device_get(sample_lengths(jax.random.key(5), histogram, 5000))
    same = np.repeat(output[:, None], fleet.num_experts, axis=1)
    ones = np.ones(same.shape, np.float32)
    dense = dataclasses.replace(named, table=RequestTable(prompt, ones, same, ones, ones))
    drawn = draw_contents(KEYS, dense, histogram, 400)
    for one, other in (
        (made_up.prompt_tokens, drawn.prompt_tokens),
        (made_up.output_tokens, drawn.output_tokens),
    ):
        one, other = (np.log(x.reshape(2, 400, -1)).mean(axis=-1).ravel() for x in (one, other))
        assert np.corrcoef(one, other)[0, 1] > 0.9


def warnings_of(caplog, named, lengths) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        draw_contents(KEYS, named, lengths, lengths.num_requests)
    return [record.getMessage() for record in caplog.records]


def test_a_table_without_such_lengths_says_so(named, caplog):
    assert warnings_of(caplog, named, trace()) == []
    (far,) = warnings_of(caplog, named, trace(1000.0))
    assert far.startswith("mine.npz: its rows are 0.0")
    # One length, which is there, is that of 16 rows of 300.
    once = trace()
    many = np.zeros(400)
    tokens = np.full(400, 100, np.int32)
    (few,) = warnings_of(
        caplog,
        named,
        dataclasses.replace(once, arrival_s=many, prompt_tokens=tokens, output_tokens=4 * tokens),
    )
    assert "as if there were only 16;" in few


def test_the_known_error_of_figures_is_measured(fleet):
    calibration = experts_named(load_calibration(), fleet.names)
    drawn = draw_contents(KEYS, calibration, None, 200)
    error = np.log(drawn.output_tokens / drawn.predicted_output_tokens).reshape(-1, fleet.num_experts)
    np.testing.assert_allclose(known_length_log_std(calibration, drawn), error.std(axis=0), rtol=1e-4)


def test_even_rows_leave_a_trace_its_arrivals_alone(fleet, named):
    """Recorded workloads take their arrivals as ever, and requests as a Poisson workload does."""
    drawn = {}
    for match in ("nearest", "even"):
        config = CaseConfig(
            workloads=("poisson", "azure_conv", "trace"), loads=(0.5,), seeds=2, num_requests=40
        )
        config = dataclasses.replace(config, table_match=match)
        drawn[match] = build_cases(config, fleet, named, 0.07, trace())
    for near, even in zip(*drawn.values(), strict=True):
        np.testing.assert_array_equal(near.runs.arrival_s, even.runs.arrival_s)
    poisson, azure, replay = (case.runs.requests.prompt_tokens for case in drawn["even"])
    np.testing.assert_array_equal(azure, poisson)
    assert replay.shape == (2, trace().num_requests)
    assert np.any(drawn["nearest"][1].runs.requests.prompt_tokens != azure)
