#!/usr/bin/env bash
# gymnasium 1.3.0: RecordEpisodeStatistics over environments that start anew within the step that ends an episode,
# gymnasium's own with autoreset_mode SAME_STEP and gymnax 1.0.1's.
#
# A good guess: the return and length of an episode are the sum and the number of its rewards. The wrapper reads
# the environment's autoreset_mode, insists on its type and warns where it is missing, so it heeds it.
# Instead: it never looks at it again, and takes the step after an end for one that only resets, as in the mode
# NEXT_STEP: its reward is left out. Every episode but the first of each environment is one step short and lacks its
# first reward. Where each step is an episode, as in a bandit or a decision by itself, no return but the first is
# counted: the mean is close to 0, whatever was earned. gymnax's vector wrapper behaves as SAME_STEP and has no such
# tag; to give it the tag ends the warning and mends nothing.
# Sum the rewards outside; where the environments are gymnasium's own, wrap each in gymnasium.wrappers'
# RecordEpisodeStatistics before they become a vector.
# Source: gymnasium/wrappers/vector/common.py (_autoreset_mode is set in __init__ and not used; step sets what
# prev_dones marks to 0), gymnax/wrappers/gym.py (GymnaxToVectorGymWrapper).
#
# Seen:
#   gymnasium 1.3.0, gymnax 1.0.1, jax 0.10.2
#   gymnasium, NEXT_STEP: mean length, mean return, episodes: summed; recorded: ((21.67, 21.67, 48), (21.67, 21.67, 48))
#   gymnasium, SAME_STEP: ((21.07, 21.07, 56), (20.14, 20.14, 56))
#   gymnasium, SAME_STEP, recorded within each environment: (21.07, 21.07, 56)
#   gymnax, without the tag: ((21.44, 21.44, 54), (20.52, 20.52, 54))
#   gymnax, with the tag: ((21.44, 21.44, 54), (20.52, 20.52, 54))
#   gymnax, bandit: ((1.0, 0.51, 1200), (0.0, 0.0, 1200))
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 gymnax==1.0.1 gymnasium==1.3.0 six==1.17.0
observe <<'PROGRAM'
import gymnasium
import gymnax
import numpy as np
from finding import shown, versions
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics as RecordEach
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from gymnax.wrappers.gym import GymnaxToVectorGymWrapper

versions("gymnasium", "gymnax", "jax")
ENVIRONMENTS, STEPS = 4, 300
SAME_STEP, NEXT_STEP = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP


def episodes(env, mode):
    """Return mean length, mean return and number of the episodes: summed here, and as gymnasium recorded them."""
    env = RecordEpisodeStatistics(env, buffer_length=ENVIRONMENTS * STEPS)
    env.reset(seed=0)
    actions = np.random.default_rng(0)
    length, earned, resets = np.zeros(ENVIRONMENTS), np.zeros(ENVIRONMENTS), np.zeros(ENVIRONMENTS, bool)
    summed = []
    for _ in range(STEPS):
        _, reward, terminated, truncated, _ = env.step(actions.integers(0, 2, ENVIRONMENTS))
        length, earned = length + ~resets, earned + np.where(resets, 0.0, reward)
        done = np.asarray(terminated) | np.asarray(truncated)
        summed += zip(length[done], earned[done])
        length, earned = np.where(done, 0, length), np.where(done, 0, earned)
        resets = done & (mode == NEXT_STEP)
    recorded = list(zip(env.length_queue, env.return_queue))
    return tuple((*np.round(np.mean(both, 0), 2).tolist(), len(both)) for both in (summed, recorded))


def cart_poles(mode):
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * ENVIRONMENTS, autoreset_mode=mode)


def from_gymnax(name, tag):
    env, params = gymnax.make(name)
    env = GymnaxToVectorGymWrapper(env, num_envs=ENVIRONMENTS, params=params)
    env.metadata = {"autoreset_mode": SAME_STEP} if tag else {}
    return env


what = "mean length, mean return, episodes: summed; recorded"
seen = episodes(cart_poles(NEXT_STEP), NEXT_STEP)
shown(f"gymnasium, NEXT_STEP: {what}", seen, seen[0] == seen[1])
seen = episodes(cart_poles(SAME_STEP), SAME_STEP)
shown("gymnasium, SAME_STEP", seen, all(0.8 < summed - recorded <= 1.0 for summed, recorded in list(zip(*seen))[:2]))
envs = SyncVectorEnv([lambda: RecordEach(gymnasium.make("CartPole-v1"))] * ENVIRONMENTS, autoreset_mode=SAME_STEP)
envs.reset(seed=0)
actions = np.random.default_rng(0)
for _ in range(STEPS):
    envs.step(actions.integers(0, 2, ENVIRONMENTS))
each = [(length, earned) for env in envs.envs for length, earned in zip(env.length_queue, env.return_queue)]
within = (*np.round(np.mean(each, 0), 2).tolist(), len(each))
shown("gymnasium, SAME_STEP, recorded within each environment", within, within == seen[0])
for tag in (False, True):
    seen = episodes(from_gymnax("CartPole-v1", tag), SAME_STEP)
    short = [summed - recorded for summed, recorded in list(zip(*seen))[:2]]
    shown(f"gymnax, {'with' if tag else 'without'} the tag", seen, all(0.8 < by <= 1.0 for by in short))
seen = episodes(from_gymnax("SimpleBandit-bsuite", True), SAME_STEP)
shown("gymnax, bandit", seen, seen[0][0] == 1.0 and seen[0][1] > 0.3 and max(seen[1][:2]) < 0.02)
PROGRAM
