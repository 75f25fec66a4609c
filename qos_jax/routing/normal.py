"""The normal distribution's values in one short formula, which XLA compiles sooner than its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Highest power first: their quotient times exp(-z^2 / 2) is the chance to be above z, fitted to 4e-7 of it
# for z from 0 to 14; from 13.2 on float32 has no such chances.
_ABOVE = (0.0170466876, 0.11952806, 0.36196562, 0.499999812)
_OVER = (0.042734711, 0.299409753, 0.953423452, 1.52179702, 1.0)
_END = 14.0


def normal_cdf(x: jax.Array) -> jax.Array:
    """Return the chance that a standard normal variable is below ``x``, within 1e-5 of itself in both tails.

    ``jax.scipy.special.ndtr`` computes erf and erfc, each of several branches, and chooses.

    Args:
      x: [...] float32.
    """
    z = jnp.minimum(jnp.abs(x), _END)
    ratio = jnp.polyval(jnp.array(_ABOVE, jnp.float32), z) / jnp.polyval(jnp.array(_OVER, jnp.float32), z)
    above = ratio * jnp.exp(-0.5 * jnp.square(z))
    return jnp.where(x > 0.0, 1.0 - above, above)
