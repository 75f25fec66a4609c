#!/usr/bin/env bash
# flashbax 0.1.3: a prioritised replay that is not yet full, with priorities above 0 throughout.
#
# A good guess: what was never added has priority 0 and is never drawn.
# Instead: the sum tree is kept up to date by adding float32 differences to the sums above a leaf, whose rounding
# errors stay and add up. Once the root is more than its leaves together, a draw from the excess ends at a slot never
# written: zeros as observations, actions and rewards. The learner then gives that slot a priority like any other, and
# it is drawn ever after. Here, with 1,000 of 16,384 slots filled, about one draw in 1,400; with all priorities 0,
# which is what temporal differences of 0 give, every draw, with a probability of NaN.
# Draw evenly, or keep a mask of what was added and give what is not the weight 0.
# Source: flashbax/buffers/sum_tree.py (set_batch_scan, set_batch_bincount: deltas; stratified_sample: up to the root's
# value), prioritised_trajectory_buffer.py (sample does not look at what was added).
#
# Seen:
#   flashbax 0.1.3, jax 0.10.2
#   can sample, slots filled: (True, 1000)
#   eight runs of 3,000 updates of 256: drawn, though never added: [153, 654, 709, 481, 569, 693, 493, 727]
#   all priorities 0: drawn from 4 added: ([0, 0, 0, 0], 'probability', nan)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 flashbax==0.1.3
observe <<'PROGRAM'
import flashbax
import jax
import jax.numpy as jnp
from finding import shown, versions

versions("flashbax", "jax")
ADDED, BATCH, UPDATES = 1_000, 256, 3_000


def replay_of(max_length, batch, added):
    """A replay that holds 1 to `added`; 0 is what no one added."""
    replay = flashbax.make_prioritised_flat_buffer(
        max_length=max_length, min_length=2, sample_batch_size=batch, add_batch_size=1, priority_exponent=0.6
    )
    numbers = jnp.arange(1, added + 1)
    state, _ = jax.lax.scan(lambda state, number: (replay.add(state, number[None]), None), replay.init(jnp.int32(0)), numbers)
    return replay, state


replay, state = replay_of(16_384, BATCH, ADDED)
seen = bool(replay.can_sample(state)), int(jnp.sum(state.experience > 0))
shown("can sample, slots filled", seen, seen == (True, ADDED))


def update(state, key):
    sample_key, priority_key = jax.random.split(key)
    drawn = replay.sample(state, sample_key)
    never_added = (drawn.experience.first == 0) | (drawn.experience.second == 0)
    priorities = 0.01 + jnp.abs(jax.random.normal(priority_key, (BATCH,)))
    return replay.set_priorities(state, drawn.indices, priorities), jnp.sum(never_added)


@jax.jit
def learn(key):
    return jax.lax.scan(update, state, jax.random.split(key, UPDATES))[1]


seen = [int(learn(key).sum()) for key in jax.random.split(jax.random.key(0), 8)]
shown(f"eight runs of {UPDATES:,} updates of {BATCH}: drawn, though never added", seen, sum(seen) > 0)

replay, state = replay_of(8, 4, 4)
state = replay.set_priorities(state, jnp.arange(4), jnp.zeros(4))
drawn = replay.sample(state, jax.random.key(0))
seen = drawn.experience.first.tolist(), "probability", float(drawn.probabilities[0])
shown("all priorities 0: drawn from 4 added", seen, seen[0] == [0, 0, 0, 0] and seen[2] != seen[2])
PROGRAM
