#!/usr/bin/env bash
# optax 0.2.8: clip_by_global_norm and a gradient that is finite but large.
#
# A good guess: clipping returns the gradient's direction with norm 1, which is its whole purpose for outliers;
# and around it `apply_if_finite` counts and refuses the steps that went wrong.
# Instead: the norm is the root of a float32 sum of squares, so from about 1.8e19 on it is infinite while the
# gradient is not, and the whole update becomes zero. Zero is finite: apply_if_finite counts no fault, and the
# optimiser's step, schedule and moments advance. One truly infinite entry gives NaN there and zeros elsewhere.
# Watch the gradient's norm before it is clipped, not the update.
# Source: optax/transforms/_clipping.py (clip_by_global_norm), optax/tree_utils (norm),
# optax/transforms/_conditionality.py (apply_if_finite looks at the gradient alone, which is finite here).
#
# Seen:
#   optax 0.2.8, jax 0.10.2
#   gradient 3e18, 4e18: size of the update, faults counted: ([0.6, 0.8], 0)
#   gradient 3e19, 4e19: size of the update, faults counted: ([0.0, 0.0], 0)
#   gradient inf, 4 clipped: [nan  0.]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
observe <<'PROGRAM'
import jax.numpy as jnp
import numpy as np
import optax
from finding import shown, versions

versions("optax", "jax")
guarded = optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), 10)
params = jnp.zeros(2)


def step(gradient):
    update, state = guarded.update(jnp.asarray(gradient), guarded.init(params), params)
    return np.abs(update).astype(np.float64).round(3).tolist(), int(state.total_notfinite)


seen = step([3e18, 4e18])
shown("gradient 3e18, 4e18: size of the update, faults counted", seen, seen == ([0.6, 0.8], 0))
seen = step([3e19, 4e19])
shown("gradient 3e19, 4e19: size of the update, faults counted", seen, seen == ([0.0, 0.0], 0))
clip = optax.clip_by_global_norm(1.0)
update, _ = clip.update(jnp.array([jnp.inf, 4.0]), clip.init(params))
shown("gradient inf, 4 clipped", update, bool(jnp.isnan(update[0])) and float(update[1]) == 0.0)
PROGRAM
