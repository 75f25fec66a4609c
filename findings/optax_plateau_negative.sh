#!/usr/bin/env bash
# optax 0.2.8: contrib.reduce_on_plateau with a loss below 0, such as minus the return.
#
# A good guess: a loss that stands still is a plateau at any height: a constant added to it changes nothing.
# Instead: the new loss must lie below (1 - rtol) times the best one. Below 0 that is above the best one, so standing
# still is an improvement, and so is getting worse by less than rtol of it, after which the worse one is the best. With
# the default rtol of 1e-4 and losses about -100 the learning rate is never reduced, however long nothing is
# learnt and even while the policy slowly unlearns. At 100 it is reduced at every patience, as it should be. The same
# descent ends eight times further from its minimum where that minimum is -1000, not 1.
# Pass rtol=0 and an atol in units of the loss; then the constant does not matter.
# Source: optax/contrib/_reduce_on_plateau.py (_update_scale: `avg_value < (1 - rtol) * best_value - atol`).
#
# Seen:
#   optax 0.2.8, jax 0.10.2
#   2,000 losses of 100: scale, best: (0.001, 100.0)
#   2,000 losses of -100: scale, best: (1.0, -100.0)
#   from 100 up to 110: scale, best: (0.001, 100.0)
#   from -100 up to -90: scale, best: (1.0, -90.0)
#   by default, distance left of x**2 + 1; of x**2 - 1000: ('0.0083', '0.0665')
#   rtol=0, atol=0.001, distance left of x**2 + 1; of x**2 - 1000: ('0.0078', '0.0077')
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
observe <<'PROGRAM'
import functools

import jax
import jax.numpy as jnp
import optax
from finding import shown, versions

versions("optax", "jax")
STEPS, PATIENCE = 2_000, 10


def plateau(**tolerance):
    return optax.contrib.reduce_on_plateau(factor=0.5, patience=PATIENCE, min_scale=1e-3, **tolerance)


@jax.jit
def scales(losses):
    """Return the learning rate's scale after losses of [N], and the loss that is then taken for the best."""
    reduce = plateau()

    def step(state, loss):
        return reduce.update(jnp.zeros(1), state, value=loss)[1], None

    state, _ = jax.lax.scan(step, reduce.init(jnp.zeros(1)), losses)
    return state.scale, state.best_value


def seen_after(losses):
    scale, best = scales(losses)
    return round(float(scale), 4), round(float(best), 2)


still = jnp.zeros(STEPS)
worse = jnp.linspace(0.0, 10.0, STEPS)
seen = seen_after(100.0 + still)
shown(f"{STEPS:,} losses of 100: scale, best", seen, seen == (0.001, 100.0))
seen = seen_after(-100.0 + still)
shown(f"{STEPS:,} losses of -100: scale, best", seen, seen == (1.0, -100.0))
seen = seen_after(100.0 + worse)
shown("from 100 up to 110: scale, best", seen, seen == (0.001, 100.0))
seen = seen_after(-100.0 + worse)
shown("from -100 up to -90: scale, best", seen, seen[0] == 1.0 and seen[1] > -91.0)


@functools.partial(jax.jit, static_argnames="tolerances")
def distance(constant, tolerances=()):
    """Descend x**2 + constant by noisy gradients from 1, 64 times; the mean distance from 0 in the last steps."""
    optimiser = optax.chain(optax.sgd(0.1), plateau(accumulation_size=10, **dict(tolerances)))

    def step(carry, key):
        x, state = carry
        loss, gradient = jax.value_and_grad(lambda x: x**2 + constant)(x)
        gradient += 0.5 * jax.random.normal(key)
        update, state = optimiser.update(gradient, state, x, value=loss)
        return (optax.apply_updates(x, update), state), jnp.abs(x)

    def run(key):
        start = jnp.float32(1.0)
        _, away = jax.lax.scan(step, (start, optimiser.init(start)), jax.random.split(key, STEPS))
        return away[-100:]

    return jnp.mean(jax.vmap(run)(jax.random.split(jax.random.key(0), 64)))


for name, tolerances in (("by default", ()), ("rtol=0, atol=0.001", (("rtol", 0.0), ("atol", 1e-3)))):
    above, below = (float(distance(jnp.float32(constant), tolerances)) for constant in (1.0, -1_000.0))
    seen = f"{above:.4f}", f"{below:.4f}"
    holds = below > 3 * above if name == "by default" else abs(below / above - 1) < 0.2
    shown(f"{name}, distance left of x**2 + 1; of x**2 - 1000", seen, holds)
PROGRAM
