#!/usr/bin/env bash
# flax 0.12.8: LayerNorm of features far from zero, such as token counts, times in ms or KV bytes.
#
# A good guess: layer normalisation removes the mean, so 10000..10007 gives what 0..7 gives, up to rounding: about
# -1.53 to 1.53.
# Instead: -3500 to 3500, finite and with no warning, from `flax.linen` and `flax.nnx` alike. The variance is the mean
# of squares less the square of the mean, in float32: of two numbers near 1e8, both rounded to 8, nothing is left, and
# what stands for it is clipped at 0, so the result is divided by the square root of epsilon. At 4096 the result is 7%
# off. The gradient explodes too. `use_fast_variance=False` gives the right ones, as do features near zero.
# Source: flax/linen/normalization.py, _compute_stats (mean2 - |mean|^2, then a maximum with 0); flax/nnx the same.
#
# Seen:
#   flax 0.12.8, jax 0.10.2
#   largest output for 0..7: 1.53
#   for 4096..4103: 1.43
#   for 10000..10007: 3500.0
#   nnx, for 10000..10007: 3500.0
#   use_fast_variance=False, for 10000..10007: 1.53
#   largest gradient at 0..7: 0.25
#   at 10000..10007 above 1e6: True
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
observe <<'PROGRAM'
import flax.linen as nn
import jax
import jax.numpy as jnp
from finding import shown, versions
from flax import nnx

versions("flax", "jax")
near, far, farther = jnp.arange(8.0), 4096 + jnp.arange(8.0), 10000 + jnp.arange(8.0)
linen = nn.LayerNorm(use_scale=False, use_bias=False)


def largest(layer, features):
    return round(float(jnp.max(jnp.abs(layer(features)))), 2)


def plain(features):
    return linen.apply({}, features)


def exact(features):
    return linen.clone(use_fast_variance=False).apply({}, features)


seen = largest(plain, near)
shown("largest output for 0..7", seen, abs(seen - 1.53) < 0.01)
seen = largest(plain, far)
shown("for 4096..4103", seen, 0.02 < abs(seen - 1.53) < 1)
seen = largest(plain, farther)
shown("for 10000..10007", seen, 1000 < seen < 4000)
seen = largest(nnx.LayerNorm(8, rngs=nnx.Rngs(0)), farther)
shown("nnx, for 10000..10007", seen, 1000 < seen < 4000)
seen = largest(exact, farther)
shown("use_fast_variance=False, for 10000..10007", seen, abs(seen - 1.53) < 0.01)
slopes = [jax.grad(lambda features: plain(features)[0])(features) for features in (near, farther)]
near_slope, farther_slope = (float(jnp.max(jnp.abs(slope))) for slope in slopes)
shown("largest gradient at 0..7", round(near_slope, 2), near_slope < 1)
shown("at 10000..10007 above 1e6", farther_slope > 1e6, 1e6 < farther_slope < float("inf"))
PROGRAM
