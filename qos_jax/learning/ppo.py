"""Proximal policy optimisation of the router's actor-critic."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from qos_jax.devices import share_out
from qos_jax.errors import input_error
from qos_jax.learning.rollout import EnvLanes, Transition, renew_lanes, rollout, start_lanes
from qos_jax.learning.types import Learner, Metrics, SampleParams
from qos_jax.policies.actor_critic import ActorCritic, RouterOutput, init_router
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.router_input import RouterInput, greedy_of
from qos_jax.routing import RoutingEnvironment
from qos_jax.routing.params import EnvParams, as_good_as_expected


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters of PPO; an update is one rollout and all the optimiser steps made of it.

    Raises:
      InputError: a value out of its range, naming the field.
    """

    num_envs: int = 64  # environments side by side, B
    rollout_steps: int = 64  # decisions of each in an update, T
    total_updates: int = 500  # over which the schedules run; going on further keeps their last values
    epochs: int = 4  # passes over a rollout
    minibatches: int = 8  # optimiser steps of a pass; must divide B * T
    learning_rate: float = 3e-4  # Adam's, of the first update
    final_learning_rate: float = 0.1  # of the last update, as a share of the first; linear in updates
    clip: float = 0.2  # how far a probability may move, as a ratio, before its gradient stops
    value_clip: float | None = None  # the same for values, absolute, in units of ``reward_scale``; None = off
    value_weight: float = 0.5  # of the value loss, beside the policy's
    entropy_weight: float = 0.01  # bonus per nat of the first update
    final_entropy_weight: float = 0.0  # of the last update; linear in updates
    max_grad_norm: float = 0.5  # a longer gradient is scaled to this length
    gamma: float = 0.99  # discount per decision
    gae_lambda: float = 0.95  # 0 = one step, 1 = the whole rollout
    normalise_advantages: bool = True  # to mean 0 and standard deviation 1, in each minibatch
    reward_scale: float | None = None  # rewards are multiplied by it; None = 1 - gamma: values like a reward
    expected_quality: bool = True  # pay what predictions let expect, with half the noise, not the true one
    average: float = 0.95  # of the weights so far in their running mean, per update; 0 = the last ones alone
    value_warmup_updates: int = 0  # first updates that train only the value's own layers: for given params

    def __post_init__(self) -> None:
        def check(field: str, fine: bool, remedy: str) -> None:
            if not fine:
                raise input_error(f"{getattr(self, field)} is out of range", field=field, remedy=remedy)

        for field in ("num_envs", "rollout_steps", "total_updates", "epochs", "minibatches"):
            check(field, getattr(self, field) >= 1, "give a whole number from 1")
        check("value_warmup_updates", self.value_warmup_updates >= 0, "give a whole number from 0")
        size = self.num_envs * self.rollout_steps
        check("minibatches", size % self.minibatches == 0, f"give a divisor of {size} decisions")
        for field in ("learning_rate", "clip", "max_grad_norm"):
            check(field, 0 < getattr(self, field) < math.inf, "give a finite number above 0")
        for field in ("value_weight", "entropy_weight", "final_entropy_weight", "final_learning_rate"):
            check(field, 0 <= getattr(self, field) < math.inf, "give a finite number from 0")
        for field in ("value_clip", "reward_scale"):
            value = getattr(self, field)
            check(field, value is None or 0 < value < math.inf, "give a finite number above 0, or none")
        check("gamma", 0 <= self.gamma < 1, "give a number from 0 to below 1")
        check("average", 0 <= self.average < 1, "give a number from 0 to below 1")
        check("gae_lambda", 0 <= self.gae_lambda <= 1, "give a number from 0 to 1")


@struct.dataclass
class PPOState:
    """Everything that training has and needs."""

    params: Any  # of the ActorCritic
    average: Any  # running mean of the parameters: what is learned, less the noise of the last batches
    optimiser: Any  # optax state of clip and Adam
    lanes: EnvLanes  # B environments
    key: jax.Array  # [] key
    updates: jax.Array  # [] int32, done so far


@struct.dataclass
class Sample:
    """One decision as the loss reads it; leading axes [B * T], or [B * T / minibatches]."""

    input: RouterInput
    action: jax.Array  # [] int32
    log_prob: jax.Array  # [] float32, of the action when it was taken
    value: jax.Array  # [] float32, as predicted then
    advantage: jax.Array  # [] float32
    target: jax.Array  # [] float32, of the value


def scheduled(config: PPOConfig, updates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Learning rate and entropy weight after ``updates`` updates: constant within one, linear between."""
    progress = jnp.minimum(updates.astype(jnp.float32) / max(config.total_updates - 1, 1), 1.0)
    learning_rate = config.learning_rate * (1.0 + progress * (config.final_learning_rate - 1.0))
    change = config.final_entropy_weight - config.entropy_weight
    return learning_rate, config.entropy_weight + progress * change


def make_ppo(
    env: RoutingEnvironment, sample_params: SampleParams, network: NetworkConfig, config: PPOConfig
) -> Learner:
    """Return PPO on ``env`` with parameters drawn per episode.

    A rollout is taken by the policy as it stands, then ``epochs`` passes are made over it in shuffled
    minibatches. Source: Schulman et al., arXiv 1707.06347, algorithm 1; the loss is in ``ppo_loss.py``.

    Raises:
      ValueError: environment and network disagree on whether a request may be dropped.
    """
    if network.allow_drop != env.config.allow_drop:
        raise ValueError(
            f"allow_drop: {env.config.allow_drop} of the environment, {network.allow_drop} of the network"
        )
    model = ActorCritic(network)

    def draw(key: jax.Array) -> EnvParams:
        params = sample_params(key)
        return as_good_as_expected(params) if config.expected_quality else params

    size = config.num_envs * config.rollout_steps
    scale = 1.0 - config.gamma if config.reward_scale is None else config.reward_scale
    optimiser = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=1e-5))

    def forward(params: Any, inputs: RouterInput) -> RouterOutput:
        out = jax.vmap(lambda one: model.apply(params, one))(inputs)
        assert isinstance(out, RouterOutput)  # flax says Any
        return out

    def init(key: jax.Array, params: Any | None = None) -> PPOState:
        lanes_key, params_key, key = jax.random.split(key, 3)
        greedy = greedy_of(params, network.allow_drop)
        lanes = start_lanes(env, draw, greedy, lanes_key, config.num_envs)
        if params is None:
            params = init_router(network, params_key, jax.tree.map(lambda x: x[0], lanes.input))
        params = jax.tree.map(jnp.asarray, params)
        average = jax.tree.map(jnp.copy, params)  # a buffer of its own: the state is donated
        return PPOState(params, average, optimiser.init(params), lanes, key, updates=jnp.int32(0))

    def collect(state: PPOState) -> tuple[EnvLanes, Transition, Sample]:
        def act(key: jax.Array, inputs: RouterInput) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            out = forward(state.params, inputs)
            action = jax.random.categorical(key, out.logits)
            return action, (_pick(jax.nn.log_softmax(out.logits), action), out.value)

        greedy = greedy_of(state.params, network.allow_drop)
        lanes, steps, (log_prob, value) = rollout(env, greedy, act, state.lanes, config.rollout_steps)
        # Nothing is cut within a rollout: each step reached the next one's state, the last that of the lanes.
        next_value = jnp.concatenate([value[1:], forward(state.params, lanes.input).value[None]])
        cut = jnp.zeros_like(steps.terminated)
        advantage, target = gae(
            scale * steps.reward, value, next_value, steps.terminated, cut, config.gamma, config.gae_lambda
        )
        lanes, _ = renew_lanes(env, draw, greedy, lanes, config.rollout_steps)
        return lanes, steps, Sample(steps.input, steps.action, log_prob, value, advantage, target)

    def loss(params: Any, batch: Sample, entropy_weight: jax.Array) -> tuple[jax.Array, Metrics]:
        out = forward(params, batch.input)
        log_probs = jax.nn.log_softmax(out.logits)
        log_ratio = _pick(log_probs, batch.action) - batch.log_prob
        advantage = normalised(batch.advantage) if config.normalise_advantages else batch.advantage
        terms = {
            "policy_loss": policy_loss(log_ratio, advantage, config.clip),
            "value_loss": value_loss(out.value, batch.value, batch.target, config.value_clip),
            "entropy": entropy(log_probs),
        }
        total = terms["policy_loss"] + config.value_weight * terms["value_loss"]
        moved = jnp.exp(log_ratio) - 1.0
        return total - entropy_weight * terms["entropy"], terms | {
            "approx_kl": jnp.mean(moved - log_ratio),
            "clip_fraction": jnp.mean((jnp.abs(moved) > config.clip).astype(jnp.float32)),
        }

    def update(state: PPOState) -> tuple[PPOState, Metrics]:
        key, shuffle_key = jax.random.split(state.key)
        learning_rate, entropy_weight = scheduled(config, state.updates)
        warming = state.updates < config.value_warmup_updates
        lanes, steps, samples = collect(state)
        flat = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), samples)

        def descend(carry: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
            params, opt_state = carry
            batch = share_out(jax.tree.map(lambda x: x[rows], flat))
            grads, metrics = jax.grad(loss, has_aux=True)(params, batch, entropy_weight)
            if config.value_warmup_updates > 0:
                grads = jax.tree.map(
                    lambda whole, value: jnp.where(warming, value, whole), grads, _of_value(grads)
                )
            with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
                direction, opt_state = optimiser.update(grads, opt_state)
            params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
            return (params, opt_state), metrics | {"grad_norm": _norm(grads)}

        def epoch(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
            rows = jax.random.permutation(key, size).reshape(config.minibatches, -1)
            return jax.lax.scan(descend, carry, rows)

        carry = (state.params, state.optimiser)
        (params, opt_state), passes = jax.lax.scan(epoch, carry, jax.random.split(shuffle_key, config.epochs))
        if config.value_warmup_updates > 0:
            # Adam starts anew: moments that are zero while its count is high make its first steps too long.
            ready = state.updates + 1 == config.value_warmup_updates
            opt_state = jax.tree.map(
                lambda new, old: jnp.where(ready, new, old), optimiser.init(params), opt_state
            )
        ended = jnp.sum(steps.completed) + jnp.sum(steps.rejected) + jnp.sum(steps.dropped)
        metrics = jax.tree.map(jnp.mean, passes) | {
            "reward": jnp.mean(steps.reward),  # per decision
            "qos": jnp.sum(steps.qos) / jnp.maximum(ended, 1).astype(jnp.float32),  # per request that ended
            "rejected_share": jnp.mean(steps.rejected.astype(jnp.float32)),  # of decisions
            "dropped_share": jnp.mean(steps.dropped.astype(jnp.float32)),
            "explained_variance": 1.0
            - jnp.var(samples.target - samples.value) / jnp.maximum(jnp.var(samples.target), 1e-12),
            "learning_rate": learning_rate,
            "entropy_weight": entropy_weight,
        }
        average = optax.incremental_update(params, state.average, 1.0 - config.average)
        return PPOState(params, average, opt_state, lanes, key, state.updates + 1), metrics

    return Learner(init=init, update=update, params=lambda state: state.average, decisions_per_update=size)


def _pick(of_actions: jax.Array, action: jax.Array) -> jax.Array:
    """The entry [...] of [..., A] that belongs to each action [...]."""
    return jnp.take_along_axis(of_actions, action[..., None], axis=-1)[..., 0]


def _norm(grads: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))


def _of_value(grads: Any) -> Any:
    """``grads`` with all but those of the value's own layers at zero, so that no score can change."""
    kept = {
        name: part if name == "critic" else jax.tree.map(jnp.zeros_like, part)
        for name, part in grads["params"].items()
    }
    return {**grads, "params": kept}


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return advantages and the value targets that go with them, both shaped like ``reward``.

    With d_t = r_t + gamma V(s_{t+1}) - V(s_t), A_t = d_t + gamma lambda A_{t+1}. A terminated step has no
    V(s_{t+1}); a truncated one has it, of the state that the step reached. Neither sees A_{t+1}, which
    belongs to another episode. The last step, which nothing follows, is truncated unless it is terminated.
    Source: Schulman et al., "High-dimensional continuous control using generalized advantage estimation",
    ICLR 2016; truncation as in Pardo et al., "Time limits in reinforcement learning", ICML 2018.

    Args:
      reward: [T, ...] float32.
      value: [T, ...] float32, V of the state before each step.
      next_value: [T, ...] float32, V of the state reached, before any reset; not read if terminated.
      terminated: [T, ...] bool, the state reached has no future.
      truncated: [T, ...] bool, the episode was cut there though it has one.
      gamma: discount per step.
      gae_lambda: 0 = one step, 1 = the whole of what follows.
    """
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
    carried = jnp.where(terminated | truncated, 0.0, gamma * gae_lambda)

    def back(later: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, carried = step
        advantage = delta + carried * later
        return advantage, advantage

    _, advantage = jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, carried), reverse=True)
    return advantage, advantage + value


def normalised(advantage: jax.Array) -> jax.Array:
    """``advantage`` [M] at mean 0 and standard deviation 1; zeros where all are equal."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)


def policy_loss(log_ratio: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """The clipped surrogate, [] float32: no reward for moving a probability further than ``clip``.

    Args:
      log_ratio: [M] float32, log of the probability of each action now over that when it was taken.
      advantage: [M] float32, of the action.
      clip: the ratio is held to 1 - clip ... 1 + clip, where that lowers the surrogate.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))


def value_loss(value: jax.Array, old_value: jax.Array, target: jax.Array, clip: float | None) -> jax.Array:
    """Half the mean squared error, [] float32; with ``clip``, the larger of that and of the held value's.

    Args:
      value: [M] float32, predicted now.
      old_value: [M] float32, predicted when the rollout was made.
      target: [M] float32.
      clip: the value is held within this distance of the old one; None = it is not.
    """
    error = jnp.square(value - target)
    if clip is not None:
        held = old_value + jnp.clip(value - old_value, -clip, clip)
        error = jnp.maximum(error, jnp.square(held - target))
    return 0.5 * jnp.mean(error)


def entropy(log_probs: jax.Array) -> jax.Array:
    """Mean entropy in nats of M distributions over A actions, [] float32; masked actions add nothing.

    Args:
      log_probs: [M, A] float32, normalised and finite.
    """
    return -jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1))
