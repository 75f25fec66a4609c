"""Small fleets, tables and rollouts shared by the tests of routing, policies and simulation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.routing import EnvConfig, Episode, RoutingEnvironment, make_params
from qos_jax.serving import SCHEDULERS, FleetProfile, ServingConfig
from qos_jax.workload import RequestTable

EXPERTS = 3
SERVING = {
    name: ServingConfig(EXPERTS, running_slots=4, waiting_slots=4, scheduler=name) for name in SCHEDULERS
}
LENGTH_LOG_STD = np.array([0.5, 0.6, 0.7], np.float32)


def profile(**changes) -> FleetProfile:
    """Three unequal experts under enough pressure to preempt and reject; times in binary fractions."""
    values = {
        "max_running": [4, 3, 4],
        "max_waiting": [4, 4, 2],
        "max_batched_tokens": [64, 64, 16],
        "kv_capacity_tokens": [120, 200, 110],
        "prefill_base_s": [2**-6, 2**-5, 2**-5],
        "prefill_per_token_s": [2**-12, 2**-11, 2**-11],
        "prefill_per_token_sq_s": [2**-20, 0.0, 2**-20],
        "decode_base_s": [2**-6, 2**-5, 2**-5],
        "decode_per_seq_s": [2**-10, 2**-11, 0.0],
        "decode_per_context_token_s": [2**-16, 2**-17, 2**-16],
        "network_rtt_s": [2**-7, 0.0, 2**-6],
        "busy_power_w": [300.0] * 3,
        "idle_power_w": [50.0] * 3,
    } | changes
    whole = ("max", "kv", "context")  # names that begin so are of whole numbers
    return FleetProfile(
        **{
            name: np.asarray(value, np.int32 if name.split("_")[0] in whole else np.float32)
            for name, value in values.items()
        }
    )


def roomy(**changes) -> FleetProfile:
    """The same with room for everything: nobody waits but for the end of an iteration."""
    return profile(max_batched_tokens=[4096] * 3, kv_capacity_tokens=[100_000] * 3, **changes)


def table(seed: int, rows: int, output_up_to: int = 40, experts: int = EXPERTS) -> RequestTable:
    """Random requests whose predictions err as LENGTH_LOG_STD says."""
    rng = np.random.default_rng(seed)
    output = rng.integers(1, output_up_to + 1, (rows, experts))
    error = rng.normal(0.0, 1.0, (rows, experts)) * LENGTH_LOG_STD[:experts]
    quality = rng.integers(0, 5, (rows, experts)) / 4
    return RequestTable(
        prompt_tokens=rng.integers(1, 31, rows).astype(np.int32),
        quality=quality.astype(np.float32),
        output_tokens=output.astype(np.int32),
        predicted_quality=np.clip(0.3 + 0.5 * quality + rng.normal(0, 0.1, quality.shape), 0, 1).astype(
            np.float32
        ),
        predicted_output_tokens=np.maximum(output * np.exp(error), 1.0).astype(np.float32),
    )


def episode(seed: int, count: int, mean_gap_s: float = 0.08, simultaneous: float = 0.1) -> Episode:
    """T arrivals, row t of the table at each."""
    rng = np.random.default_rng(seed)
    gap_s = rng.exponential(mean_gap_s, count) * (rng.random(count) >= simultaneous)
    return Episode(gap_after_s=gap_s.astype(np.float32), row=np.arange(count, dtype=np.int32))


def replay_params(seed: int, count: int, fleet: FleetProfile | None = None, **options):
    """Parameters of a replay of ``count`` requests."""
    return make_params(
        fleet or profile(),
        table(seed, count),
        options.pop("latency_limit_s", 0.06),
        LENGTH_LOG_STD,
        episode=episode(seed, count, options.pop("mean_gap_s", 0.08)),
        **options,
    )


def process_params(
    process, fleet: FleetProfile | None = None, latency_limit_s=0.06, seed: int = 0, **options
):
    """Parameters of an endless process."""
    return make_params(
        fleet or profile(), table(seed, 64), latency_limit_s, LENGTH_LOG_STD, process=process, **options
    )


def environment(scheduler: str = "prefill_first", **options) -> RoutingEnvironment:
    return RoutingEnvironment(EnvConfig(SERVING[scheduler], **options))


@functools.partial(jax.jit, static_argnums=0)
def rollout(env: RoutingEnvironment, key, params, actions):
    """Take ``actions`` [T] from a reset; returns the states before them, the results, the last state."""
    reset_key, *_ = keys = jax.random.split(key, actions.shape[0] + 1)
    start, _ = env.reset(reset_key, params)

    def step(state, x):
        step_key, action = x
        reached, result = env.step(step_key, state, action, params)
        return reached, (state, result)

    last, (states, results) = jax.lax.scan(step, start, (jnp.stack(keys[1:]), actions))
    return states, results, last


def random_actions(seed: int, count: int, high: int = EXPERTS) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, count), jnp.int32)
