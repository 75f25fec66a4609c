#!/usr/bin/env bash
# optax 0.2.8: cross-entropy where illegal actions have the logit -inf.
#
# A good guess: an action of probability 0 in both the target and the prediction adds nothing (0 log 0 = 0), in
# each of the library's softmax losses alike; if it did not, the gradient would show it.
# Instead: softmax_cross_entropy is NaN (0 times -inf), while its gradient is finite and right: training goes well
# and the logged loss is NaN, and a guard on the loss stops a sound run. The integer-label loss and
# safe_softmax_cross_entropy give the value. Integer labels have a trap of their own: -1, the usual mark of "no
# label", is taken as the last class without an error.
# Source: optax/losses/_classification.py.
#
# Seen:
#   optax 0.2.8, jax 0.10.2
#   softmax_cross_entropy: nan
#   its gradient: [-0.73105854  0.          0.7310586 ]
#   softmax_cross_entropy_with_integer_labels: 1.3132615089416504
#   safe_softmax_cross_entropy: 1.31326162815094
#   integer label -1, and the last class: (0.3132615089416504, 0.3132615089416504)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
observe <<'PROGRAM'
import jax
import jax.numpy as jnp
import optax
from finding import shown, versions

versions("optax", "jax")
logits, target = jnp.array([1.0, -jnp.inf, 2.0]), jnp.array([1.0, 0.0, 0.0])
by_integer = optax.softmax_cross_entropy_with_integer_labels
seen = float(optax.softmax_cross_entropy(logits, target))
shown("softmax_cross_entropy", seen, seen != seen)
gradient = jax.grad(optax.softmax_cross_entropy)(logits, target)
right = jax.nn.softmax(logits) - target
shown("its gradient", gradient, bool(jnp.allclose(gradient, right)))
for loss, label in ((by_integer, 0), (optax.losses.safe_softmax_cross_entropy, target)):
    seen = float(loss(logits, label))
    shown(loss.__name__, seen, abs(seen - 1.31326) < 1e-4)
seen = float(by_integer(logits, -1))
last = float(by_integer(logits, 2))
shown("integer label -1, and the last class", (seen, last), seen == last)
PROGRAM
