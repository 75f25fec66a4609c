"""The normal distribution's values against SciPy's, in the middle and in both tails."""

import jax.numpy as jnp
import numpy as np
from scipy import special

from qos_jax.routing.normal import normal_cdf


def test_it_is_scipys_in_both_tails():
    x = np.linspace(-12.5, 12.5, 4001, dtype=np.float32)
    # An exponential of z^2 / 2 has as many roundings more as that is large.
    np.testing.assert_allclose(normal_cdf(jnp.array(x)), special.ndtr(x.astype(float)), rtol=1e-5)
    small = np.abs(x) < 2.0
    np.testing.assert_allclose(
        normal_cdf(jnp.array(x[small])), special.ndtr(x[small].astype(float)), rtol=1e-6
    )


def test_what_is_beyond_float32_is_certain():
    found = normal_cdf(jnp.array([-np.inf, -40.0, 40.0, np.inf, np.nan], jnp.float32))
    np.testing.assert_array_equal(found, np.array([0.0, 0.0, 1.0, 1.0, np.nan], np.float32))
