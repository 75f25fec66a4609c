#!/usr/bin/env bash
# jax 0.10.2: what a key means under vmap with the generator `rbg`, which is chosen for its speed on TPUs.
#
# A good guess: `vmap` over keys draws in each lane what its key draws alone, whichever generator is set: that is
# what vmap means, and with the default generator it holds.
# Instead: with rbg and unsafe_rbg the batch is drawn from the first lane's key alone. The other keys are ignored:
# replacing them changes nothing, and a simulation of lane 3 can't be repeated by its key. Seeds mapped over are
# not paired across batches of different order (no common random numbers). `poisson` refuses rbg altogether.
# Source: jax.random's module documentation (generators beside the default one; "exact jax.vmap over keys" is
# ticked for Threefry and Philox alone); the batching rule of rng_bit_generator in jax/_src/lax/control_flow/loops.py.
#
# Seen:
#   jax 0.10.2, jaxlib 0.10.2
#   threefry2x32: lane draws what its key draws alone: [True, True, True]
#   threefry2x32: same draws with other keys in lanes 1 and 2: [True, False, False]
#   rbg: lane draws what its key draws alone: [True, False, False]
#   rbg: same draws with other keys in lanes 1 and 2: [True, True, True]
#   unsafe_rbg: lane draws what its key draws alone: [True, False, False]
#   unsafe_rbg: same draws with other keys in lanes 1 and 2: [True, True, True]
#   poisson by rbg: NotImplementedError: `poisson` is only implemented for the threefry2x32 RNG, not rbg
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
observe <<'PROGRAM'
import jax
import jax.numpy as jnp
import numpy as np
from finding import error_of, shown, versions

versions("jax", "jaxlib")
for implementation, is_own in (("threefry2x32", True), ("rbg", False), ("unsafe_rbg", False)):
    keys = jax.random.split(jax.random.key(0, impl=implementation), 3)
    others = jax.random.split(jax.random.key(1, impl=implementation), 3)
    mapped = np.asarray(jax.vmap(jax.random.uniform)(keys))
    alone = np.asarray([jax.random.uniform(key) for key in keys])
    same = (mapped == alone).tolist()
    shown(f"{implementation}: lane draws what its key draws alone", same, same == [True, is_own, is_own])
    replaced = jax.vmap(jax.random.uniform)(jnp.concatenate([keys[:1], others[1:]]))
    same = (mapped == np.asarray(replaced)).tolist()
    shown(f"{implementation}: same draws with other keys in lanes 1 and 2", same, same == [True, not is_own, not is_own])
error = error_of(lambda: jax.random.poisson(jax.random.key(0, impl="rbg"), 3.0))
shown("poisson by rbg", error, error is not None and error.startswith("NotImplementedError"))
PROGRAM
