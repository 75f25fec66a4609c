"""Soft actor-critic for discrete actions, the paper's learner: off-policy, from a replay memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.devices import share_out
from qos_jax.learning.replay import Replay, add_rollout, empty_replay, replay_bytes, sample_replay
from qos_jax.learning.rollout import (
    EnvLanes,
    check_allow_drop,
    decision_metrics,
    renew_lanes,
    rollout,
    start_lanes,
)
from qos_jax.learning.sac_config import SACConfig
from qos_jax.learning.sac_step import SACWeights, gradient_step, init_weights, policy_entropy
from qos_jax.learning.types import Learner, Metrics, SampleParams
from qos_jax.policies.actor_critic import MASKED_LOGIT, actor_outputs
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.router_input import RouterInput, action_mask, greedy_of
from qos_jax.routing import RoutingEnvironment

__all__ = ["SACConfig", "SACState", "make_sac", "sac_replay_bytes"]


@struct.dataclass
class SACState:
    """The whole state of the learner; donate it to the jitted update, or the replay is copied at each."""

    weights: SACWeights
    replay: Replay
    lanes: EnvLanes
    uniform: jax.Array  # [] bool, decisions of the warm-up are random, not the actor's
    baseline: jax.Array  # [] float32 QoS, subtracted from every reward: its mean when learning began
    key: jax.Array  # [] key


def make_sac(
    env: RoutingEnvironment, sample_params: SampleParams, network: NetworkConfig, config: SACConfig
) -> Learner:
    """Return SAC as a learner.

    Decisions of the warm-up are the actor's if it starts from given parameters or is residual, else random.
    Until the warm-up is over no gradient step is taken, and the metrics of learning are 0. Only
    ``terminated`` ends the return; where the time limit cut an episode, it bootstraps. An n-step return
    leaves out the entropy of the decisions in between, and is not corrected for their policy. Centering
    rewards does not change the best policy, for no action changes how many decisions an episode has.

    Raises:
      InputError: environment and network disagree on whether a request may be dropped.
    """
    check_allow_drop(env, network)

    def init(key: jax.Array, params: Any | None = None) -> SACState:
        key, weights_key, lanes_key = jax.random.split(key, 3)
        greedy = greedy_of(params, network.allow_drop, network.information)
        lanes = start_lanes(env, sample_params, greedy, lanes_key, config.num_envs)
        example = jax.tree.map(lambda leaf: leaf[0], lanes.input)
        replay = empty_replay(lanes.input, *_replay_sizes(config))
        weights = init_weights(network, config, weights_key, example, params)
        uniform = jnp.bool_(params is None and not network.residual)
        return SACState(weights, replay, lanes, uniform, baseline=jnp.float32(0.0), key=key)

    def update(state: SACState) -> tuple[SACState, Metrics]:
        key, learn_key = jax.random.split(state.key)
        greedy = greedy_of(state.weights.actor, network.allow_drop, network.information)
        random = state.uniform & (state.replay.size < config.warmup_decisions)

        def act(key: jax.Array, inputs: RouterInput) -> tuple[jax.Array, jax.Array]:
            mask = action_mask(inputs, network.allow_drop)
            logits = actor_outputs(network, state.weights.actor, inputs).logits
            logits = jnp.where(random, jnp.where(mask, 0.0, MASKED_LOGIT), logits)
            return jax.random.categorical(key, logits), policy_entropy(logits, mask)

        lanes, taken, entropy = rollout(env, greedy, act, state.lanes, config.steps_per_update)
        outcome = taken.action, taken.reward, taken.terminated
        replay = add_rollout(state.replay, taken.input, lanes.input, *outcome)
        lanes, _ = renew_lanes(env, sample_params, greedy, lanes, config.steps_per_update)

        # The mean reward is fixed when learning begins: a moving one would move all of Q.
        level = jnp.sum(replay.reward) / replay.size.astype(jnp.float32) * float(config.center_rewards)
        baseline = jnp.where(state.weights.steps == 0, level, state.baseline)

        def step(weights: SACWeights, key: jax.Array) -> tuple[SACWeights, Metrics]:
            batch = sample_replay(replay, key, config.batch_size, config.gamma, config.n_step, baseline)
            return gradient_step(network, config, weights, share_out(batch))

        def learn(weights: SACWeights) -> tuple[SACWeights, Metrics]:
            weights, steps = jax.lax.scan(step, weights, jax.random.split(learn_key, config.gradient_steps))
            return weights, jax.tree.map(jnp.mean, steps)

        def wait(weights: SACWeights) -> tuple[SACWeights, Metrics]:
            shapes = jax.eval_shape(learn, weights)[1]
            return weights, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        warm = replay.size >= config.warmup_decisions
        weights, learned = jax.lax.cond(warm, learn, wait, state.weights)
        metrics = learned | decision_metrics(taken)
        metrics |= {
            "entropy": jnp.mean(entropy),  # nats, of the policy that decided
            "alpha": jnp.exp(weights.log_alpha),
            "replay_fill": replay.size.astype(jnp.float32) / replay.capacity,
        }
        return SACState(weights, replay, lanes, state.uniform, baseline, key), metrics

    decisions = config.num_envs * config.steps_per_update
    return Learner(init, update, lambda state: state.weights.actor, decisions)


def sac_replay_bytes(env: RoutingEnvironment, sample_params: SampleParams, config: SACConfig) -> int:
    """Return the bytes of one run's replay, without making it."""

    def see(key: jax.Array) -> RouterInput:
        return start_lanes(env, sample_params, greedy_of(None, False), key, config.num_envs).input

    inputs = jax.eval_shape(see, jax.eval_shape(jax.random.key, 0))
    return replay_bytes(inputs, *_replay_sizes(config))


def _replay_sizes(config: SACConfig) -> tuple[int, int, bool]:
    return config.replay_capacity, config.steps_per_update, config.half_precision_replay
