"""The search for the largest rate: on metrics whose crossing is known, and every way to ask wrongly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos_jax.errors import InputError
from qos_jax.simulation.metrics import METRICS
from qos_jax.sweep.capacity import AT_LEAST, FOUND, NONE, largest_rates, parse_search

WITHIN = list(METRICS).index("share_within_limit")


def falling(knee_per_s):
    """A share within L that is 1 up to a knee and then falls; [c] knees, two seeds around the mean."""

    def run(rate_per_s):
        share = 1 / (1 + (rate_per_s / knee_per_s) ** 4)
        metrics = np.full((len(knee_per_s), 2, len(METRICS)), np.nan)
        metrics[:, 0, WITHIN], metrics[:, 1, WITHIN] = share - 0.01, share + 0.01
        run.calls += 1
        return metrics

    run.calls = 0
    return run


@given(
    st.lists(st.floats(0.01, 1000), min_size=1, max_size=5),
    st.floats(0.005, 0.2),
    st.sampled_from([0.5, 0.9]),
)
def test_finds_the_crossing(knees, tolerance, share):
    search = parse_search("arrival_rate", f"share_within_limit>={share}", (0.1, 100.0), tolerance)
    knee = np.array(knees)
    crossing = knee * (1 / share - 1) ** 0.25
    run = falling(knee)
    found = largest_rates(run, np.full(len(knee), 0.1), np.full(len(knee), 100.0), search)
    assert run.calls == search.rounds
    for i, true in enumerate(crossing):
        if found.outcome[i] == NONE:
            assert true < 0.1 * (1 + 1e-9)
            assert np.isnan(found.rate_per_s[i])
            assert found.fails_at_per_s[i] == 0.1
            continue
        best = found.metrics[i, :, WITHIN].mean()
        assert best >= share
        # The metrics kept are those at the rate told.
        assert best == pytest.approx(1 / (1 + (found.rate_per_s[i] / knee[i]) ** 4))
        if found.outcome[i] == AT_LEAST:
            assert true > 100 * (1 - 1e-9)
            assert found.rate_per_s[i] == 100
            assert np.isnan(found.fails_at_per_s[i])
        else:
            assert found.outcome[i] == FOUND
            assert found.rate_per_s[i] <= true * (1 + 1e-9)
            assert true * (1 - 1e-9) <= found.fails_at_per_s[i]
            assert found.fails_at_per_s[i] <= found.rate_per_s[i] * (1 + tolerance) * (1 + 1e-9)


def test_a_metric_that_must_stay_low_and_one_that_is_undefined():
    latency = list(METRICS).index("ttft_p95_s")
    search = parse_search("load", "ttft_p95_s <= 2", (1.0, 8.0), 0.01)

    def run(rate):
        metrics = np.full((2, 1, len(METRICS)), np.nan)
        metrics[0, :, latency] = rate[0]  # the second cell never has a first token
        return metrics

    found = largest_rates(run, np.ones(2), np.full(2, 8.0), search)
    assert found.outcome == [FOUND, NONE]
    assert 2 / 1.01 <= found.rate_per_s[0] <= 2


@pytest.mark.parametrize(
    ("name", "target", "ends", "tolerance", "says"),
    [
        ("arrival_rate", None, (1, 2), 0.1, "'capacity': needs target"),
        (None, "average_qos>=0.5", (1, 2), 0.1, "'target': needs capacity"),
        ("arival_rate", "average_qos>=0.5", (1, 2), 0.1, "did you mean 'arrival_rate'"),
        ("load", "average_qos>0.5", (1, 2), 0.1, "not METRIC>=VALUE"),
        ("load", "average_qo>=0.5", (1, 2), 0.1, "did you mean 'average_qos'"),
        ("load", "average_qos>=most", (1, 2), 0.1, "'most' is not a finite number"),
        ("load", "average_qos>=nan", (1, 2), 0.1, "'nan' is not a finite number"),
        ("load", "average_qos<=0.5", (1, 2), 0.1, "turn the sign round: average_qos>=0.5"),
        ("load", "ttft_p95_s>=0.5", (1, 2), 0.1, "turn the sign round: ttft_p95_s<=0.5"),
        ("load", "average_qos>=0.5", (2, 1), 0.1, "'capacity_range'"),
        ("load", "average_qos>=0.5", (1,), 0.1, "is no range"),
        ("load", "average_qos>=0.5", (0, 1), 0.1, "is no range"),
        ("load", "average_qos>=0.5", (1, 2), 0.0, "'capacity_tolerance'"),
    ],
)
def test_refused(name, target, ends, tolerance, says):
    with pytest.raises(InputError, match="; ") as error:
        parse_search(name, target, ends, tolerance)
    assert says in str(error.value)


def test_nothing_asked_nothing_searched():
    assert parse_search(None, None, (1, 2), 0.1) is None
