"""Proximal policy optimisation of the router's actor-critic."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from qos_jax.checks import COUNT, COUNT_OR_ZERO, DISCOUNT, NON_NEGATIVE, POSITIVE, SHARE, check_range
from qos_jax.devices import share_out
from qos_jax.errors import input_error
from qos_jax.learning.losses import entropy, gae, impact_loss, normalised, policy_loss, value_loss
from qos_jax.learning.rollout import (
    EnvLanes,
    Transition,
    TrueImpact,
    check_allow_drop,
    decision_metrics,
    renew_lanes,
    rollout,
    start_lanes,
)
from qos_jax.learning.types import Learner, Metrics, SampleParams, paying_expected_quality
from qos_jax.policies.actor_critic import actor_outputs, init_router
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.router_input import RouterInput, greedy_of
from qos_jax.routing import RoutingEnvironment


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters of PPO; an update is one rollout and all the optimiser steps made of it.

    Raises:
      InputError: a value out of its range, naming the field.
    """

    num_envs: int = 64  # environments side by side, B
    rollout_steps: int = 64  # decisions of each in an update, T
    total_updates: int = 500  # over which the schedules run; going on further keeps their last values
    epochs: int = 1  # passes over a rollout
    minibatches: int = 16  # optimiser steps of a pass; must divide B * T
    learning_rate: float = 6e-4  # Adam's, of the first update
    final_learning_rate: float = 0.1  # of the last update, as a share of the first; linear in updates
    clip: float = 0.2  # how far a probability may move, as a ratio, before its gradient stops
    value_clip: float | None = None  # the same for values, absolute, in units of ``reward_scale``; None = off
    policy_weight: float = 1.0  # of the policy's loss; 0 = with a learned impact, that alone is trained
    value_weight: float = 0.5  # of the value loss, beside the policy's
    entropy_weight: float = 0.01  # bonus per nat of the first update
    final_entropy_weight: float = 0.0  # of the last update; linear in updates
    max_grad_norm: float = 0.5  # a longer gradient is scaled to this length
    gamma: float = 0.99  # discount per decision
    gae_lambda: float = 0.95  # 0 = one step, 1 = the whole rollout
    normalise_advantages: bool = True  # to mean 0 and standard deviation 1, in each minibatch
    reward_scale: float | None = None  # rewards are multiplied by it; None = 1 - gamma: values like a reward
    expected_quality: bool = True  # pay the expectation given the predictions, with half the noise
    average: float = 0.95  # decay per update of the running mean of the weights; 0 = the last ones alone
    impact_weight: float = 1.0  # of the error of the learned impact, beside the policy's loss
    value_warmup_updates: int = 0  # first updates, which train the value's own layers alone

    def __post_init__(self) -> None:
        counts = ("num_envs", "rollout_steps", "total_updates", "epochs", "minibatches")
        check_range(self, counts, COUNT)
        check_range(self, ("value_warmup_updates",), COUNT_OR_ZERO)
        size = self.num_envs * self.rollout_steps
        if size % self.minibatches:
            fault, remedy = f"{self.minibatches} is out of range", f"give a divisor of {size} decisions"
            raise input_error(fault, field="minibatches", remedy=remedy)
        positive = ("learning_rate", "clip", "max_grad_norm", "value_clip", "reward_scale")
        check_range(self, positive, POSITIVE)
        weights = (
            "policy_weight",
            "impact_weight",
            "value_weight",
            "entropy_weight",
            "final_entropy_weight",
            "final_learning_rate",
        )
        check_range(self, weights, NON_NEGATIVE)
        check_range(self, ("gamma", "average"), DISCOUNT)
        check_range(self, ("gae_lambda",), SHARE)


@struct.dataclass
class PPOState:
    """The whole state of the learner."""

    params: Any  # of the ActorCritic
    average: Any  # running mean of the parameters: the result, less the noise of the last batches
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
    correction: jax.Array  # [N] float32, of the predicted qualities, which PPO does not train
    impact: TrueImpact | None = None  # with ``learned_impact``
    start: jax.Array | None = None  # [A] float32, of the logits when the action was taken


def make_ppo(
    env: RoutingEnvironment, sample_params: SampleParams, network: NetworkConfig, config: PPOConfig
) -> Learner:
    """Return PPO as a learner.

    An update takes a rollout with the current policy, then makes ``epochs`` passes over it in shuffled
    minibatches. Source: Schulman et al., arXiv 1707.06347, algorithm 1.

    Raises:
      InputError: environment and network disagree on whether a request may be dropped.
    """
    check_allow_drop(env, network)
    if config.expected_quality:
        sample_params = paying_expected_quality(sample_params)
    size = config.num_envs * config.rollout_steps
    optimiser = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=1e-5))

    def init(key: jax.Array, params: Any | None = None) -> PPOState:
        lanes_key, params_key, key = jax.random.split(key, 3)
        greedy = greedy_of(params, network.allow_drop, network.information)
        lanes = start_lanes(env, sample_params, greedy, lanes_key, config.num_envs)
        if params is None:
            params = init_router(network, params_key, jax.tree.map(lambda x: x[0], lanes.input))
        params = jax.tree.map(jnp.asarray, params)
        average = jax.tree.map(jnp.copy, params)  # a buffer of its own: the state is donated
        return PPOState(params, average, optimiser.init(params), lanes, key, updates=jnp.int32(0))

    def update(state: PPOState) -> tuple[PPOState, Metrics]:
        key, shuffle_key = jax.random.split(state.key)
        learning_rate, entropy_weight = scheduled(config, state.updates)
        warming = state.updates < config.value_warmup_updates
        lanes, steps, samples = _collect(env, sample_params, network, config, state)
        flat = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), samples)

        def descend(carry: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
            params, opt_state = carry
            batch = share_out(jax.tree.map(lambda x: x[rows], flat))
            gradient = jax.grad(_loss, argnums=2, has_aux=True)
            grads, metrics = gradient(network, config, params, batch, entropy_weight)
            if config.value_warmup_updates > 0:
                grads = jax.tree.map(lambda a, b: jnp.where(warming, b, a), grads, _of_value(grads))
            with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
                direction, opt_state = optimiser.update(grads, opt_state)
            params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
            squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads))
            return (params, opt_state), metrics | {"grad_norm": jnp.sqrt(squares)}

        def epoch(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
            rows = jax.random.permutation(key, size).reshape(config.minibatches, -1)
            return jax.lax.scan(descend, carry, rows)

        carry = (state.params, state.optimiser)
        (params, opt_state), passes = jax.lax.scan(epoch, carry, jax.random.split(shuffle_key, config.epochs))
        if config.value_warmup_updates > 0:
            # Adam starts anew: moments that are zero while its count is high make its first steps too long.
            ready = state.updates + 1 == config.value_warmup_updates
            fresh = optimiser.init(params)
            opt_state = jax.tree.map(lambda new, old: jnp.where(ready, new, old), fresh, opt_state)
        metrics = jax.tree.map(jnp.mean, passes) | decision_metrics(steps)
        missed = jnp.var(samples.target - samples.value) / jnp.maximum(jnp.var(samples.target), 1e-12)
        metrics |= {"explained_variance": 1.0 - missed}
        metrics |= {"learning_rate": learning_rate, "entropy_weight": entropy_weight}
        average = optax.incremental_update(params, state.average, 1.0 - config.average)
        return PPOState(params, average, opt_state, lanes, key, state.updates + 1), metrics

    return Learner(init, update, lambda state: state.average, size)


def scheduled(config: PPOConfig, updates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return learning rate and entropy weight after ``updates`` ([] int32), linear from update to update."""
    progress = jnp.minimum(updates.astype(jnp.float32) / max(config.total_updates - 1, 1), 1.0)
    learning_rate = config.learning_rate * (1.0 + progress * (config.final_learning_rate - 1.0))
    change = config.final_entropy_weight - config.entropy_weight
    return learning_rate, config.entropy_weight + progress * change


def _collect(
    env: RoutingEnvironment,
    sample_params: SampleParams,
    network: NetworkConfig,
    config: PPOConfig,
    state: PPOState,
) -> tuple[EnvLanes, Transition, Sample]:
    """Return renewed lanes, one rollout by the current policy, and its samples; leaves [T, B, ...]."""

    def act(key: jax.Array, inputs: RouterInput) -> tuple[jax.Array, Any]:
        out = actor_outputs(network, state.params, inputs)
        action = jax.random.categorical(key, out.logits)
        return action, (
            _pick(jax.nn.log_softmax(out.logits), action),
            out.value,
            out.quality_correction,
            out.start,
        )

    greedy = greedy_of(state.params, network.allow_drop, network.information)
    lanes, steps, (log_prob, value, correction, start) = rollout(
        env, greedy, act, state.lanes, config.rollout_steps, with_impact=network.learned_impact
    )
    # Nothing is cut within a rollout: each step reaches the next one's state, the last that of the lanes.
    last_value = actor_outputs(network, state.params, lanes.input).value
    next_value = jnp.concatenate([value[1:], last_value[None]])
    cut = jnp.zeros_like(steps.terminated)
    reward = (1.0 - config.gamma if config.reward_scale is None else config.reward_scale) * steps.reward
    discounts = config.gamma, config.gae_lambda
    advantage, target = gae(reward, value, next_value, steps.terminated, cut, *discounts)
    lanes, _ = renew_lanes(env, sample_params, greedy, lanes, config.rollout_steps)
    taken = steps.input, steps.action, log_prob, value, advantage, target, correction
    samples = Sample(*taken, steps.impact, start)
    return lanes, steps, samples


def _loss(
    network: NetworkConfig, config: PPOConfig, params: Any, batch: Sample, entropy_weight: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Return PPO's loss of a minibatch: clipped surrogate, value error and entropy bonus."""
    out = actor_outputs(network, params, batch.input, batch.correction)
    logits = out.logits
    if out.start is not None and batch.start is not None:
        # The learned impact moves within an update, too; the policy's own steps alone are to be clipped.
        logits = logits + (batch.start - out.start)
    log_probs = jax.nn.log_softmax(logits)
    log_ratio = _pick(log_probs, batch.action) - batch.log_prob
    advantage = normalised(batch.advantage) if config.normalise_advantages else batch.advantage
    terms = {
        "policy_loss": policy_loss(log_ratio, advantage, config.clip),
        "value_loss": value_loss(out.value, batch.value, batch.target, config.value_clip),
        "entropy": entropy(log_probs),
    }
    total = config.value_weight * terms["value_loss"]
    # A loss of no weight is reported, but has no gradient to compute.
    if not _is_zero(config.policy_weight):
        total = total + config.policy_weight * terms["policy_loss"]
    if not (_is_zero(config.entropy_weight) and _is_zero(config.final_entropy_weight)):
        total = total - entropy_weight * terms["entropy"]
    if batch.impact is not None and out.impact is not None:
        terms["impact_loss"] = impact_loss(out.impact, batch.impact, batch.input.graph.available)
        total = total + config.impact_weight * terms["impact_loss"]
    moved = jnp.exp(log_ratio) - 1.0
    return total, terms | {
        "approx_kl": jnp.mean(moved - log_ratio),
        "clip_fraction": jnp.mean((jnp.abs(moved) > config.clip).astype(jnp.float32)),
    }


def _is_zero(weight: float) -> bool:
    """Return whether a weight is known to be 0, as one of ``training.hyper``, which is traced, never is."""
    return not isinstance(weight, jax.Array) and weight == 0.0


def _pick(of_actions: jax.Array, action: jax.Array) -> jax.Array:
    """Return the entries [...] of [..., A] at the actions [...]."""
    return jnp.take_along_axis(of_actions, action[..., None], axis=-1)[..., 0]


def _of_value(grads: Any) -> Any:
    """Return ``grads`` with all but the value's own layers at zero, so that no score can change."""
    zeros: dict[str, Any] = jax.tree.map(jnp.zeros_like, grads["params"])
    return {**grads, "params": {**zeros, "critic": grads["params"]["critic"]}}
