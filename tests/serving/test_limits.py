"""Service levels: what keeps each limit, at equality too, by NumPy and within a program."""

import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.serving import LIMITS, ServiceLimits, as_limits
from qos_jax.serving.limits import all_kept, limits_kept

# Three requests, in binary fractions: 4 tokens, 4 tokens and 1. Latencies per token 1, 1.5 and 1.25 s, TPOTs
# (4 - 0.25 - 0.75) / 3 = 1, (6 - 0.25 - 2) / 3 = 1.25, none.
OUTCOMES = {
    "latency_s": np.array([4.0, 6.0, 1.25], np.float32),
    "ttft_s": np.array([0.75, 2.0, 1.0], np.float32),
    "output_tokens": np.array([4.0, 4.0, 1.0], np.float32),
    "network_rtt_s": np.float32(0.25),
}


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize(
    ("name", "limit_s", "kept"),
    [
        ("latency_limit_s", 1.25, [True, False, True]),
        ("ttft_limit_s", 1.0, [True, False, True]),
        ("ttft_limit_s", 0.75, [True, False, False]),
        ("tpot_limit_s", 1.0, [True, False, True]),
        ("tpot_limit_s", 2.0**-20, [False, False, True]),
        ("e2e_limit_s", 4.0, [True, False, True]),
    ],
)
def test_equality_meets_a_limit(xp, name, limit_s, kept):
    limits = ServiceLimits(**({"latency_limit_s": np.float32(np.inf)} | {name: np.float32(limit_s)}))
    found = limits_kept(limits, **{key: xp.asarray(value) for key, value in OUTCOMES.items()}, xp=xp)
    assert list(found) == list(dict.fromkeys(["latency_limit_s", name]))
    np.testing.assert_array_equal(found[name], kept)
    np.testing.assert_array_equal(all_kept(found), kept)


def test_infinite_limits_keep_all():
    limits = ServiceLimits(*[np.float32(np.inf)] * len(LIMITS))
    assert all_kept(limits_kept(limits, **OUTCOMES, xp=np)).all()


def test_what_is_set_is_static():
    plain = as_limits(0.07)
    assert (plain.is_plain, plain.needs_ttft) == (True, False)
    assert not ServiceLimits(0.07, e2e_limit_s=3.0).is_plain
    for name in ("ttft_limit_s", "tpot_limit_s"):
        assert ServiceLimits(0.07, **{name: 1.0}).needs_ttft
    assert as_limits(plain) is plain


@pytest.mark.parametrize(
    ("limits", "pace_s"),
    [((0.07, None, 0.5), 0.07), ((np.inf, 2.0, 0.5), 0.5), ((np.inf, 2.0, None), 0.1), ((np.inf,) * 3, 0.1)],
)
def test_times_are_compared_with_a_finite_pace(limits, pace_s):
    assert float(ServiceLimits(*limits).pace_s) == pytest.approx(pace_s)
