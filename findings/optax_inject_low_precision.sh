#!/usr/bin/env bash
# optax 0.2.8: inject_hyperparams around Adam for parameters in bfloat16.
#
# A good guess: inject_hyperparams makes the learning rate adjustable and changes nothing else.
# Instead: every floating hyperparameter becomes an array of the parameters' highest dtype. In bfloat16 b2 = 0.999
# rounds to 1.0, the bias correction divides by 1 - 1.0 = 0, and the first update is already NaN, where plain
# optax.adam is fine. Name what is to be injected and make the rest static, or give hyperparam_dtype=jnp.float32.
# Source: optax/schedules/_inject.py (init_fn takes the dtype from the parameters; hyperparam_dtype).
#
# Seen:
#   optax 0.2.8, jax 0.10.2
#   optax.adam in bfloat16: [-0.100098 -0.100098]
#   b2 when injected: 1.0
#   injected optax.adam in bfloat16: [nan nan]
#   with hyperparam_dtype=jnp.float32: [-0.1 -0.1]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
observe <<'PROGRAM'
import jax.numpy as jnp
import optax
from finding import shown, versions

versions("optax", "jax")
params = jnp.ones(2, jnp.bfloat16)


def first_update(optimiser):
    state = optimiser.init(params)
    return optimiser.update(jnp.ones(2, jnp.bfloat16), state, params)[0], state


update, _ = first_update(optax.adam(0.1))
shown("optax.adam in bfloat16", update, bool(jnp.isfinite(update).all()))
update, state = first_update(optax.inject_hyperparams(optax.adam)(learning_rate=0.1))
shown("b2 when injected", state.hyperparams["b2"], float(state.hyperparams["b2"]) == 1.0)
shown("injected optax.adam in bfloat16", update, bool(jnp.isnan(update).all()))
update, _ = first_update(optax.inject_hyperparams(optax.adam, hyperparam_dtype=jnp.float32)(learning_rate=0.1))
shown("with hyperparam_dtype=jnp.float32", update, bool(jnp.isfinite(update).all()))
PROGRAM
