#!/usr/bin/env bash
# jraph 0.0.6.dev0: attention by segment_softmax where a node's edges are all masked.
#
# A good guess: a node with no admissible neighbour gets no attention, zeros, as a segment without edges does; or,
# if it is NaN, jnp.where on the result keeps it out of the loss and so out of the gradient.
# Instead: with every logit of a segment at -inf the softmax is NaN. With a mask that is added to the logits (0 or
# -inf, as transformers do) the loss through jnp.where is finite and the gradient of every shared parameter NaN; set
# by jnp.where on the logits, the same mask gives the right gradient. A large negative number in place of -inf gives
# such a segment uniform attention over the very edges that are masked, which is no better.
# Source: jraph/_src/utils.py (segment_softmax subtracts the segment's maximum: -inf minus -inf).
#
# Seen:
#   jraph 0.0.6.dev0, jax 0.10.2
#   attention, node 0 all masked: [       nan        nan 0.26894143 0.7310586 ]
#   mask added: loss, gradient: (0.6067761182785034, nan)
#   mask chosen: loss, gradient: (0.6067761182785034, 0.18171553313732147)
#   attention with -1e9 for -inf: [0.5        0.5        0.26894143 0.7310586 ]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 jraph==0.0.6.dev0
observe <<'PROGRAM'
import jax
import jax.numpy as jnp
import jraph
from finding import shown, versions

versions("jraph", "jax")
receivers = jnp.array([0, 0, 1, 1])
raw = jnp.array([1.0, 2.0, 1.0, 2.0])
allowed = jnp.array([False, False, True, True])


def attention(logits):
    return jraph.segment_softmax(logits, receivers, 2)


def added(scale, masked=-jnp.inf):
    return attention(scale * raw + jnp.where(allowed, 0.0, masked))


def chosen(scale, masked=-jnp.inf):
    return attention(jnp.where(allowed, scale * raw, masked))


seen = added(1.0)
shown("attention, node 0 all masked", seen, jnp.isnan(seen).tolist() == [True, True, False, False])
for mask, is_sound in ((added, False), (chosen, True)):
    value, slope = jax.value_and_grad(lambda scale: jnp.sum(jnp.where(allowed, mask(scale), 0.0) ** 2))(1.0)
    shown(f"mask {mask.__name__}: loss, gradient", (float(value), float(slope)),
          bool(jnp.isfinite(value)) and bool(jnp.isfinite(slope)) == is_sound)
seen = chosen(1.0, -1e9)
shown("attention with -1e9 for -inf", seen, seen[:2].tolist() == [0.5, 0.5])
PROGRAM
