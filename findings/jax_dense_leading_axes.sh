#!/usr/bin/env bash
# jax 0.10.2, flax 0.12.8: the gradient of a dense layer whose input has two leading axes, on a CPU.
#
# A good guess: [512, 6, F] and [3072, F] are the same rows in memory, so nn.Dense compiles to the same products for
# either, forward and backward. Libraries of matrix products read an operand transposed at no cost.
# Instead: only the forward pass is the same. The gradient by the weights contracts two axes of [512, 6, F]; XLA makes
# it a product that reads the output's gradient as [G, 3072], fuses what computes that gradient with the change of
# layout, and so computes it a second time, element by element in the order of columns. With [3072, F] it reads the
# gradient as it is. All networks over sets of nodes (experts, agents, tokens) have such inputs. Results differ by
# rounding at most. Flatten the leading axes before the layer and give them back after it.
# Source: flax/linen/linear.py (Dense, one dot_general for any leading axes) and jax/_src/lax/lax.py
# (_dot_general_transpose_rhs, which contracts all of them).
#
# Seen:
#   jax 0.10.2, jaxlib 0.10.2, flax 0.12.8
#   [3072, 128]: fused copies by columns, [64, 3072] or [128, 3072]: 0
#   [512, 6, 128]: fused copies by columns, [64, 3072] or [128, 3072]: 2
#   gradients differ by less than 1e-5 of their largest: True
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
observe <<'PROGRAM'
import re

import jax
import jax.numpy as jnp
from finding import shown, versions
from flax import linen as nn

versions("jax", "jaxlib", "flax")
network = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(64), nn.relu, nn.Dense(1)])
rows = jax.random.normal(jax.random.key(0), (3072, 128))
params = network.init(jax.random.key(1), rows)


def gradient(inputs):
    def loss(params):
        return jnp.sum(jnp.tanh(network.apply(params, inputs)))

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    copies = re.findall(r"= f32\[(?:64|128),3072\]\S* fusion\(", compiled.as_text())
    return len(copies), compiled(params)


flat, of_flat = gradient(rows)
shown("[3072, 128]: fused copies by columns, [64, 3072] or [128, 3072]", flat, flat == 0)
deep, of_deep = gradient(rows.reshape(512, 6, 128))
shown("[512, 6, 128]: fused copies by columns, [64, 3072] or [128, 3072]", deep, deep > 0)
pairs = zip(jax.tree.leaves(of_flat), jax.tree.leaves(of_deep), strict=True)
error = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in pairs)
shown("gradients differ by less than 1e-5 of their largest", error < 1e-5, error < 1e-5)
PROGRAM
