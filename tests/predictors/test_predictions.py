"""Means and quantiles of lengths given as probabilities of buckets."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from qos_jax.errors import InputError
from qos_jax.predictors import Predictions
from qos_jax.predictors.predictions import bucket_edges, bucket_of


def predictions(probability: list[float], edges: list[float]) -> Predictions:
    return Predictions(
        np.zeros((1, 1), np.float32),
        np.array(probability, np.float32).reshape(1, 1, -1),
        np.array(edges, np.float32),
    )


def test_quantiles_by_hand():
    """Within [10, 1000] lengths are log-uniform: the middle is 100, a quarter 10 ** 1.5."""
    one = predictions([0.0, 1.0, 0.0], [1, 10, 1000, 2000])
    assert one.output_tokens == pytest.approx(100)
    assert one.quantile_tokens(0.25) == pytest.approx(10**1.5)
    assert one.quantile_tokens(0) >= 1
    assert one.quantile_tokens(1) == pytest.approx(1000)
    assert one.output_mean_tokens == pytest.approx(990 / np.log(100))


def test_the_median_lies_where_half_is_reached():
    one = predictions([0.4, 0.2, 0.4], [1, 10, 40, 100])
    assert one.output_tokens == pytest.approx(20)


@hypothesis.given(
    weights=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.01),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_quantiles_rise_and_stay_inside(weights, shares):
    one = predictions([w / sum(weights) for w in weights], [2, 10, 40, 100])
    low, high = (one.quantile_tokens(share).item() for share in sorted(shares))
    assert 2 * (1 - 1e-6) <= low <= high * (1 + 1e-6) <= 100 * (1 + 1e-5)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(InputError, match="share"):
        predictions([1.0], [1, 2]).quantile_tokens(1.1)


def test_lengths_fall_into_their_buckets():
    edges = bucket_edges(10, 1000)
    assert edges[0] == pytest.approx(0.5)
    assert edges[-1] == pytest.approx(1000.5)
    tokens = np.array([1, 7, 1000, 10**6, -1])
    at = bucket_of(tokens, edges)
    assert at.tolist()[2:] == [9, 9, 0]
    assert (edges[at[:3]] <= tokens[:3]).all()
    assert (tokens[:3] < edges[at[:3] + 1]).all()
