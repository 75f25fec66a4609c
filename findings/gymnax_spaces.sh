#!/usr/bin/env bash
# gymnax 1.0.1's spaces: what `contains` accepts and what `sample` returns.
#
# A good guess: `action_space.contains` refuses what is no action, and a sample of a space lies in that space
# and is finite, as Gymnasium's spaces do.
# Instead: Discrete.contains casts to the integer type first and compares then, so 1.7 and -0.5 are actions of
# Discrete(2); and a Box samples uniformly between low and high, whose difference overflows for the bounds of
# plus and minus float32's largest number that gymnax's own CartPole declares: the sample is infinite and is
# outside the space it came from.
# Source: gymnax/environments/spaces.py (Discrete.contains, Box.sample), classic_control/cartpole.py
# (observation_space).
#
# Seen:
#   gymnax 1.0.1, gymnasium 1.3.0, jax 0.10.2
#   Discrete(2, dtype=int32).contains(1.7): True
#   Discrete(2, dtype=int32).contains(-0.5): True
#   Gymnasium's Discrete(2).contains(1.7): False
#   CartPole's observation_space.sample: [ 4.2976036          inf -0.14049916         inf]
#   the space contains its own sample: False
#   Gymnasium's Box of the same bounds in float64, finite: True
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 gymnax==1.0.1 six==1.17.0
observe <<'PROGRAM'
import gymnax
import gymnasium
import jax
import numpy as np
from finding import shown, versions

versions("gymnax", "gymnasium", "jax")
env, params = gymnax.make("CartPole-v1")
actions = env.action_space(params)
for value in (1.7, -0.5):
    accepted = bool(actions.contains(value))
    shown(f"{actions!r}.contains({value})", accepted, accepted)
accepted = gymnasium.spaces.Discrete(2).contains(1.7)
shown("Gymnasium's Discrete(2).contains(1.7)", accepted, not accepted)

space = env.observation_space(params)
sample = space.sample(jax.random.key(0))
shown("CartPole's observation_space.sample", sample, np.isinf(np.asarray(sample)).sum() == 2)
inside = bool(space.contains(sample))
shown("the space contains its own sample", inside, not inside)
drawn = gymnasium.spaces.Box(np.asarray(space.low), np.asarray(space.high), dtype=np.float64).sample()
shown("Gymnasium's Box of the same bounds in float64, finite", bool(np.isfinite(drawn).all()), np.isfinite(drawn).all())
PROGRAM
