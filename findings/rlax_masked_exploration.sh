#!/usr/bin/env bash
# rlax 0.1.9 and distrax 0.1.9: epsilon-greedy over scores of which some are masked with -inf.
#
# A good guess: -inf rules an action out, as it does for softmax and greedy policies in the same two packages: a router
# that explores never sends a request to a server that is down or full.
# Instead: epsilon is spread evenly over all actions, and the masked one is drawn like any other, with a finite
# log-probability. Put the mask into the probabilities: explore with a softmax of 0 and -inf.
# Source: rlax/_src/distributions.py (epsilon_greedy: uniform over all), distrax/_src/distributions/epsilon_greedy.py.
#
# Seen:
#   rlax 0.1.9, distrax 0.1.9, jax 0.10.2
#   rlax: probabilities of 1, 2, -inf: softmax, greedy: ([0.269, 0.731, 0.0], [0.0, 1.0, 0.0])
#   rlax: epsilon-greedy, epsilon 0.3: [0.1, 0.8, 0.1]
#   distrax: EpsilonGreedy, epsilon 0.3, and the masked one among 1,000 draws: ([0.1, 0.8, 0.1], 106)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 rlax==0.1.9 distrax==0.1.9
observe <<'PROGRAM'
import distrax
import jax
import jax.numpy as jnp
import numpy as np
import rlax
from finding import shown, versions

versions("rlax", "distrax", "jax")
scores, epsilon = jnp.array([1.0, 2.0, -jnp.inf]), 0.3


def rounded(probabilities):
    return np.asarray(probabilities, np.float64).round(3).tolist()


seen = rounded(rlax.softmax().probs(scores)), rounded(rlax.greedy().probs(scores))
shown("rlax: probabilities of 1, 2, -inf: softmax, greedy", seen, seen[0][2] == seen[1][2] == 0.0)
seen = rounded(rlax.epsilon_greedy(epsilon).probs(scores))
shown("rlax: epsilon-greedy, epsilon 0.3", seen, seen == [0.1, 0.8, 0.1])
policy = distrax.EpsilonGreedy(scores, epsilon)
drawn = policy.sample(seed=jax.random.key(0), sample_shape=(1_000,))
seen = rounded(policy.probs), int((drawn == 2).sum())
shown("distrax: EpsilonGreedy, epsilon 0.3, and the masked one among 1,000 draws", seen, seen[1] > 50)
PROGRAM
