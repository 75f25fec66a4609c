"""One gradient step of soft actor-critic for discrete actions: actor, twin critics, temperature.

An actor that starts from a policy worth keeping has the divergence from it, the behaviour prior, in its
objective in place of the entropy. The best policy by the entropy, softmax(Q / alpha), has nothing left of the
start, which is so unlearned wherever the critics err by more than the actions differ.

Sources: Christodoulou, "Soft Actor-Critic for Discrete Action Settings", 2019, arXiv 1910.07207; the prior:
Wu et al., "Behavior Regularized Offline Reinforcement Learning", 2019, arXiv 1911.11361.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from qos_jax.learning.replay import ReplayBatch
from qos_jax.learning.sac_config import ALPHA_RANGE, SACConfig
from qos_jax.learning.types import Metrics
from qos_jax.policies.actor_critic import TwinCritic, actor_outputs, init_router
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.router_input import RouterInput, action_mask


@struct.dataclass
class SACWeights:
    """Parameters, optimiser states and the counter of gradient steps."""

    actor: Any  # parameters of the ActorCritic, whose value is not used
    critic: Any  # parameters of the TwinCritic
    target: Any  # those of the target critics
    log_alpha: jax.Array  # [] float32, log of the temperature, QoS per nat of entropy
    actor_optimizer: Any
    critic_optimizer: Any
    alpha_optimizer: Any
    steps: jax.Array  # [] int32, gradient steps taken
    prior: Any = None  # parameters of the policy that the actor is held near; None = its entropy counts


def policy_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the entropy in nats of softmax(logits) over the actions in ``mask``, [..., A] -> [...]."""
    log_pi = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.where(mask, jnp.exp(log_pi) * log_pi, 0.0), axis=-1)


def policy_divergence(logits: jax.Array, prior_logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Return KL(softmax(logits) || softmax(prior_logits)) in nats over ``mask``, [..., A] -> [...]."""
    log_pi = jax.nn.log_softmax(logits)
    ratio = log_pi - jax.nn.log_softmax(prior_logits)
    return jnp.sum(jnp.where(mask, jnp.exp(log_pi) * ratio, 0.0), axis=-1)


def expected_q(logits: jax.Array, mask: jax.Array, q: jax.Array) -> jax.Array:
    """Return the policy's expectation of the lower Q, [...] float32; arguments as :func:`soft_value`."""
    lower = jnp.min(q, axis=-2)
    return jnp.sum(jnp.where(mask, jax.nn.softmax(logits) * lower, 0.0), axis=-1)


def soft_value(logits: jax.Array, mask: jax.Array, q: jax.Array, alpha: jax.Array) -> jax.Array:
    """Return the soft value: the policy's expectation of the lower Q plus alpha times its entropy.

    Args:
      logits: [..., A] float32, of the policy.
      mask: [..., A] bool, actions available.
      q: [..., 2, A] float32, both estimates.
      alpha: [] float32.

    Returns:
      [...] float32. Source: arXiv 1910.07207, equations 10 to 12.
    """
    return expected_q(logits, mask, q) + alpha * policy_entropy(logits, mask)


def entropy_surplus(entropy: jax.Array, mask: jax.Array, fraction: float) -> jax.Array:
    """Return mean entropy less its target in nats, [] float32: the gradient of alpha's loss in log(alpha).

    That loss is log(alpha) times this, not alpha times this: a small alpha learns as fast as a large one.

    Args:
      entropy: [batch] float32.
      mask: [batch, A] bool, actions available.
      fraction: the target as a share of the largest entropy, log(actions available).
    """
    target = fraction * jnp.log(jnp.sum(mask, axis=-1, dtype=jnp.float32))
    return jnp.mean(entropy - target)


def critic_q(network: NetworkConfig, params: Any, inputs: RouterInput) -> jax.Array:
    """Return both critics' estimates for inputs with a leading axis, [batch, 2, A] float32."""
    q: Any = TwinCritic(network).apply(params, inputs)
    return q


def init_weights(
    network: NetworkConfig, config: SACConfig, key: jax.Array, example: RouterInput, actor: Any | None
) -> SACWeights:
    """Return fresh weights, but for the actor's if they are given.

    The prior is the starting actor where that is a policy worth keeping, given or residual, and the
    configuration asks for it.
    """
    actor_key, critic_key = jax.random.split(key)
    keeps = config.prior_weight is not None and (actor is not None or network.residual)
    # Copies: a donated state must hold neither the given parameters nor one buffer twice.
    if actor is None:
        actor = init_router(network, actor_key, example)
    actor = jax.tree.map(jnp.copy, actor)
    critic = TwinCritic(network).init(critic_key, example)
    log_alpha = jnp.log(jnp.float32(config.initial_alpha))
    return SACWeights(
        actor=actor,
        critic=critic,
        target=jax.tree.map(jnp.copy, critic),
        log_alpha=log_alpha,
        actor_optimizer=_adam(config, config.actor_learning_rate).init(actor),
        critic_optimizer=_adam(config, config.critic_learning_rate).init(critic),
        alpha_optimizer=_adam(config, config.alpha_learning_rate).init(log_alpha),
        steps=jnp.int32(0),
        prior=jax.tree.map(jnp.copy, actor) if keeps else None,
    )


def critic_target(
    network: NetworkConfig, weights: SACWeights, batch: ReplayBatch, alpha: jax.Array
) -> jax.Array:
    """Return the Bellman target of Q, [batch] float32: reward plus discounted soft value.

    With a prior the value is plain: what the actor is held by is no part of what its decisions are worth.
    """
    logits = actor_outputs(network, weights.actor, batch.next_inputs).logits
    mask = action_mask(batch.next_inputs, network.allow_drop)
    q = critic_q(network, weights.target, batch.next_inputs)
    value = soft_value(logits, mask, q, alpha) if weights.prior is None else expected_q(logits, mask, q)
    return batch.reward + batch.discount * value


def gradient_step(
    network: NetworkConfig, config: SACConfig, weights: SACWeights, batch: ReplayBatch
) -> tuple[SACWeights, Metrics]:
    """Return weights after a step of the critics and, after ``critic_only_steps``, of actor and alpha.

    With a prior alpha stays as it is, and counts nowhere.
    """
    alpha = jnp.exp(weights.log_alpha)
    mask = action_mask(batch.inputs, network.allow_drop)
    target = critic_target(network, weights, batch, alpha)

    def critic_loss(params: Any) -> tuple[jax.Array, jax.Array]:
        q = critic_q(network, params, batch.inputs)
        chosen = jnp.take_along_axis(q, batch.action[:, None, None], axis=-1)[..., 0]
        return 0.5 * jnp.mean(jnp.sum((chosen - target[:, None]) ** 2, axis=-1)), q

    (critic_error, q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(weights.critic)
    critic, critic_optimizer = _descend(
        config, config.critic_learning_rate, gradient, weights.critic_optimizer, weights.critic
    )

    prior_logits = None
    if weights.prior is not None:
        prior_logits = actor_outputs(network, weights.prior, batch.inputs).logits

    # The actor learns from the critics before their step, whose estimates are computed already.
    def actor_loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = actor_outputs(network, params, batch.inputs).logits
        if prior_logits is None:
            return -jnp.mean(soft_value(logits, mask, q, alpha)), policy_entropy(logits, mask)
        assert config.prior_weight is not None
        divergence = policy_divergence(logits, prior_logits, mask)
        return -jnp.mean(expected_q(logits, mask, q) - config.prior_weight * divergence), divergence

    (actor_error, spread), gradient = jax.value_and_grad(actor_loss, has_aux=True)(weights.actor)
    actor, actor_optimizer = _descend(
        config, config.actor_learning_rate, gradient, weights.actor_optimizer, weights.actor
    )
    log_alpha, alpha_optimizer = weights.log_alpha, weights.alpha_optimizer
    if prior_logits is None:
        surplus = entropy_surplus(spread, mask, config.target_entropy_fraction)
        log_alpha, alpha_optimizer = _descend(
            config, config.alpha_learning_rate, surplus, alpha_optimizer, log_alpha
        )
    low, high = (jnp.log(jnp.float32(end)) for end in ALPHA_RANGE)
    acting = weights.steps >= config.critic_only_steps
    old = (weights.actor, weights.actor_optimizer, weights.log_alpha, weights.alpha_optimizer)
    new = (actor, actor_optimizer, jnp.clip(log_alpha, low, high), alpha_optimizer)
    actor, actor_optimizer, log_alpha, alpha_optimizer = jax.tree.map(
        lambda new, old: jnp.where(acting, new, old), new, old
    )
    learned = SACWeights(
        actor=actor,
        critic=critic,
        target=optax.incremental_update(critic, weights.target, config.polyak_tau),
        log_alpha=log_alpha,
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
        alpha_optimizer=alpha_optimizer,
        steps=weights.steps + 1,
        prior=weights.prior,
    )
    q_mean = jnp.sum(jnp.where(mask[:, None], q, 0.0)) / (2.0 * jnp.sum(mask, dtype=jnp.float32))
    metrics = {"critic_loss": critic_error, "actor_loss": actor_error, "q": q_mean}
    return learned, metrics if prior_logits is None else metrics | {"divergence": jnp.mean(spread)}


def _adam(config: SACConfig, rate: float) -> optax.GradientTransformation:
    steps = config.total_updates * config.gradient_steps
    falling = optax.linear_schedule(rate, rate * config.final_learning_rate, steps)
    # One vector of all leaves: a third less to compile, and as fast.
    return optax.flatten(optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(falling)))


def _descend(config: SACConfig, rate: float, gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """Return parameters and optimiser state after a step of Adam."""
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
        change, state = _adam(config, rate).update(gradient, state, params)
    return optax.apply_updates(params, change), state
