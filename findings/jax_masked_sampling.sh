#!/usr/bin/env bash
# jax 0.10.2: sampling when a mask leaves nothing to choose, or too little.
#
# A good guess: a draw from no admissible category raises, or returns something that can't be an index; a draw
# without replacement never returns a category of probability zero. NumPy raises ValueError in all three cases.
# Instead: `categorical` with every logit at -inf returns category 0, as if it were the router's choice; one NaN
# among the logits is returned for every key, since argmax takes NaN for the largest; and `choice` without
# replacement fills up with categories of probability zero, in order.
# So a mask needs an answer of its own for "none" before the draw, and logits a check for NaN.
# Source: jax/_src/random.py (categorical: argmax of logits plus Gumbel noise; choice: Gumbel top-k).
#
# Seen:
#   jax 0.10.2, numpy 2.4.6
#   categorical, all four masked, 1,000 keys: [0]
#   categorical, logits 5, 0, NaN, 0, 1,000 keys: [2]
#   choice of 3 without replacement, weights 1, 0, 0, 0: [0, 1, 2]
#   NumPy's choice of the same: ValueError: Fewer non-zero entries in p than size
#   NumPy's choice by weights that are all 0: ValueError: Probabilities do not sum to 1. See Notes section of docstring for more information.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
observe <<'PROGRAM'
import jax
import jax.numpy as jnp
import numpy as np
from finding import error_of, shown, versions

versions("jax", "numpy")
keys = jax.random.split(jax.random.key(0), 1000)


def drawn(logits):
    return np.unique(jax.vmap(lambda key: jax.random.categorical(key, logits))(keys)).tolist()


seen = drawn(jnp.full(4, -jnp.inf))
shown("categorical, all four masked, 1,000 keys", seen, seen == [0])
seen = drawn(jnp.array([5.0, 0.0, jnp.nan, 0.0]))
shown("categorical, logits 5, 0, NaN, 0, 1,000 keys", seen, seen == [2])
weight = np.array([1.0, 0.0, 0.0, 0.0])
seen = jax.random.choice(keys[0], 4, (3,), replace=False, p=jnp.asarray(weight)).tolist()
shown("choice of 3 without replacement, weights 1, 0, 0, 0", seen, seen == [0, 1, 2])
numpy_draw = np.random.default_rng(0)
error = error_of(lambda: numpy_draw.choice(4, 3, replace=False, p=weight))
shown("NumPy's choice of the same", error, error is not None and error.startswith("ValueError"))
error = error_of(lambda: numpy_draw.choice(4, p=np.zeros(4)))
shown("NumPy's choice by weights that are all 0", error, error is not None and error.startswith("ValueError"))
PROGRAM
