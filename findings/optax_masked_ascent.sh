#!/usr/bin/env bash
# optax 0.2.8: optax.masked as a way to freeze part of the parameters.
#
# A good guess: `masked(sgd(0.1), mask)` trains what the mask marks and leaves the rest as it is.
# Instead: the gradient of the rest passes through untouched, and apply_updates adds it: those parameters climb
# the loss at learning rate 1. With b the frozen one of b**2 it doubles and more at each step. Freeze by
# set_to_zero on the complement (optax.partition, or a second mask).
# Source: optax/transforms/_masking.py and its docstring (unmasked updates are returned as they came).
#
# Seen:
#   optax 0.2.8, jax 0.10.2
#   masked(sgd), only a trained: {'a': 0.512, 'b': 27.0}
#   with set_to_zero on b: {'a': 0.512, 'b': 1.0}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
observe <<'PROGRAM'
import jax
import jax.numpy as jnp
import optax
from finding import shown, versions

versions("optax", "jax")
trained = {"a": True, "b": False}
frozen = {"a": False, "b": True}


def after_three_steps(optimiser):
    params = {"a": jnp.float32(1.0), "b": jnp.float32(1.0)}
    state = optimiser.init(params)
    for _ in range(3):
        gradient = jax.grad(lambda params: params["a"] ** 2 + params["b"] ** 2)(params)
        update, state = optimiser.update(gradient, state, params)
        params = optax.apply_updates(params, update)
    return {name: round(float(value), 3) for name, value in params.items()}


seen = after_three_steps(optax.masked(optax.sgd(0.1), trained))
shown("masked(sgd), only a trained", seen, seen == {"a": 0.512, "b": 27.0})
seen = after_three_steps(optax.chain(optax.masked(optax.sgd(0.1), trained), optax.masked(optax.set_to_zero(), frozen)))
shown("with set_to_zero on b", seen, seen == {"a": 0.512, "b": 1.0})
PROGRAM
