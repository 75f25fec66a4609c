"""Soft actor-critic for discrete actions, the paper's learner: off-policy, from a replay memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.devices import share_out
from qos_jax.learning.replay import Replay, add_rollout, empty_replay, replay_bytes, sample_replay
from qos_jax.learning.rollout import EnvLanes, renew_lanes, rollout, start_lanes
from qos_jax.learning.sac_config import SACConfig
from qos_jax.learning.sac_step import SACWeights, actor_logits, gradient_step, init_weights, policy_entropy
from qos_jax.learning.types import Learner, Metrics, SampleParams
from qos_jax.policies.actor_critic import MASKED_LOGIT
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.router_input import RouterInput, action_mask, greedy_of
from qos_jax.routing import RoutingEnvironment

__all__ = ["SACConfig", "SACState", "make_sac", "sac_replay_bytes"]


@struct.dataclass
class SACState:
    """Everything there is; donate it to the jitted update, or the replay is copied at each."""

    weights: SACWeights
    replay: Replay
    lanes: EnvLanes
    uniform: jax.Array  # [] bool, whether decisions before the end of the warm-up are random
    baseline: jax.Array  # [] float32, QoS, taken off every reward; the mean when learning began
    key: jax.Array  # [] key


def make_sac(
    env: RoutingEnvironment, sample_params: SampleParams, network: NetworkConfig, config: SACConfig
) -> Learner:
    """Return the learner.

    Its ``init`` takes ActorCritic parameters to start from, say distilled ones: then decisions of the
    warm-up are the actor's, as they are if the network is residual; otherwise they are random.
    Only ``terminated`` ends the return; where the time limit cut an episode, the value goes on.
    An n-step return leaves out the entropy of the decisions in between, and that they were another
    policy's. Rewards may be centered without changing what is best, for no choice changes how many
    decisions an episode has. Until the warm-up is over no gradient step is taken, and the metrics of
    learning are 0.

    Args:
      env: the environment.
      sample_params: draws the parameters of one episode.
      network: of actor and critics; ``allow_drop`` as in ``env``.
      config: the learner's numbers.

    Raises:
      ValueError: network and environment differ in the number of actions.
    """
    if network.allow_drop != env.config.allow_drop:
        raise ValueError(f"allow_drop is {network.allow_drop} in the network, not so in the environment")

    def init(key: jax.Array, params: Any | None = None) -> SACState:
        key, weights_key, lanes_key = jax.random.split(key, 3)
        greedy = greedy_of(params, network.allow_drop)
        lanes = start_lanes(env, sample_params, greedy, lanes_key, config.num_envs)
        example = jax.tree.map(lambda leaf: leaf[0], lanes.input)
        replay = empty_replay(
            lanes.input, config.replay_capacity, config.steps_per_update, config.half_precision_replay
        )
        return SACState(
            weights=init_weights(network, config, weights_key, example, params),
            replay=replay,
            lanes=lanes,
            uniform=jnp.bool_(params is None and not network.residual),
            baseline=jnp.float32(0.0),
            key=key,
        )

    def update(state: SACState) -> tuple[SACState, Metrics]:
        key, learn_key = jax.random.split(state.key)
        greedy = greedy_of(state.weights.actor, network.allow_drop)
        random = state.uniform & (state.replay.size < config.warmup_decisions)

        def act(key: jax.Array, inputs: RouterInput) -> tuple[jax.Array, jax.Array]:
            mask = action_mask(inputs, network.allow_drop)
            logits = actor_logits(network, state.weights.actor, inputs)
            logits = jnp.where(random, jnp.where(mask, 0.0, MASKED_LOGIT), logits)
            return jax.random.categorical(key, logits), policy_entropy(logits, mask)

        lanes, taken, entropy = rollout(env, greedy, act, state.lanes, config.steps_per_update)
        replay = add_rollout(
            state.replay, taken.input, lanes.input, taken.action, taken.reward, taken.terminated
        )
        lanes, _ = renew_lanes(env, sample_params, greedy, lanes, config.steps_per_update)

        # The level of rewards, as of the moment learning began: a moving one would move all of Q.
        level = jnp.sum(replay.reward) / replay.size.astype(jnp.float32) * float(config.center_rewards)
        baseline = jnp.where(state.weights.steps == 0, level, state.baseline)

        def one(weights: SACWeights, key: jax.Array) -> tuple[SACWeights, Metrics]:
            batch = sample_replay(replay, key, config.batch_size, config.gamma, config.n_step, baseline)
            batch = share_out(batch)
            return gradient_step(network, config, weights, batch)

        def learn(weights: SACWeights) -> tuple[SACWeights, Metrics]:
            weights, steps = jax.lax.scan(one, weights, jax.random.split(learn_key, config.gradient_steps))
            return weights, jax.tree.map(jnp.mean, steps)

        def wait(weights: SACWeights) -> tuple[SACWeights, Metrics]:
            shapes = jax.eval_shape(learn, weights)[1]
            return weights, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        warm = replay.size >= config.warmup_decisions
        weights, learned = jax.lax.cond(warm, learn, wait, state.weights)
        ended = jnp.sum(taken.completed) + jnp.sum(taken.rejected) + jnp.sum(taken.dropped)
        metrics = learned | {
            "reward": jnp.mean(taken.reward),  # per decision
            "qos": jnp.sum(taken.qos) / jnp.maximum(ended, 1).astype(jnp.float32),  # per request that ended
            "rejected_share": jnp.mean(taken.rejected.astype(jnp.float32)),  # of decisions
            "dropped_share": jnp.mean(taken.dropped.astype(jnp.float32)),
            "entropy": jnp.mean(entropy),  # nats, of the policy that decided
            "alpha": jnp.exp(weights.log_alpha),
            "replay_fill": replay.size.astype(jnp.float32) / replay.capacity,
        }
        return SACState(weights, replay, lanes, state.uniform, baseline, key), metrics

    return Learner(
        init=init,
        update=update,
        params=lambda state: state.weights.actor,
        decisions_per_update=config.num_envs * config.steps_per_update,
    )


def sac_replay_bytes(env: RoutingEnvironment, sample_params: SampleParams, config: SACConfig) -> int:
    """Bytes that the replay of one run will take, before anything is made."""

    def see(key: jax.Array) -> RouterInput:
        return start_lanes(env, sample_params, greedy_of(None, False), key, config.num_envs).input

    inputs = jax.eval_shape(see, jax.eval_shape(jax.random.key, 0))
    return replay_bytes(inputs, config.replay_capacity, config.steps_per_update, config.half_precision_replay)
