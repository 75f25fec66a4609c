"""A replay of requests at given experts through the closed form, for tests of the serving floor."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.serving import (
    FleetProfile,
    ServingConfig,
    advance,
    arrive,
    empty_state,
    evict,
    place,
)


def _outcome(state):
    return (state.request_id, state.ttft_s, state.latency_s, state.preemptions)


@functools.partial(jax.jit, static_argnums=0)
def scan_requests(config: ServingConfig, profile: FleetProfile, gap_s, expert, prompt, output):
    """Route T requests; returns final state and, per step, acceptance, the evicted outcome and progress."""

    def step(carry, x):
        state, request_id = carry
        gap_s, expert, prompt, output = x
        placement = place(profile, state, expert, prompt, output)
        gone = evict(placement, _outcome(state))
        gone = (jnp.where(placement.accepted, gone[0], -1), *gone[1:])
        state = arrive(placement, state, request_id, prompt, output)
        state, progress = advance(config, profile, state, gap_s)
        sums = (
            progress.busy_s,
            progress.kv_token_s,
            jnp.sum(progress.completed),
            jnp.sum(state.live),
            progress.rounds,
        )
        return (state, request_id + 1), (placement.accepted, gone, sums)

    (state, _), out = jax.lax.scan(
        step, (empty_state(config), jnp.int32(0)), (gap_s, expert, prompt, output)
    )
    return state, out


def replay(config: ServingConfig, profile: FleetProfile, arrival_s, expert, prompt, output):
    """Replay T requests and drain; ``output`` is [T, N]. Returns a dict of NumPy arrays by request."""
    arrival_s = np.asarray(arrival_s, np.float64)
    count = arrival_s.size
    gap_s = np.append(np.diff(arrival_s), np.inf).astype(np.float32)
    state, (accepted, gone, sums) = jax.device_get(
        scan_requests(
            config,
            jax.tree.map(jnp.asarray, profile),
            jnp.asarray(gap_s),
            jnp.asarray(expert, jnp.int32),
            jnp.asarray(prompt, jnp.int32),
            jnp.asarray(output, jnp.int32),
        )
    )
    left = tuple(np.asarray(x).ravel() for x in _outcome(state))
    request_id, ttft_s, latency_s, preemptions = (
        np.concatenate([g, x]) for g, x in zip(gone, left, strict=True)
    )
    known = request_id >= 0
    result = {
        "completed": np.zeros(count, bool),
        "accepted": np.asarray(accepted),
        "ttft_s": np.full(count, np.nan),
        "latency_s": np.full(count, np.nan),
        "preemptions": np.zeros(count, int),
        "records": int(known.sum()),
        "still_live": int(state.live.sum()),
        "busy_s": sums[0].astype(np.float64).sum(axis=0),
        "kv_token_s": sums[1].astype(np.float64).sum(axis=0),
        "completed_after": sums[2].cumsum(),
        "in_flight_after": sums[3],
        "rounds": sums[4],
    }
    ids = request_id[known]
    result["completed"][ids] = True
    result["ttft_s"][ids] = ttft_s[known]
    result["latency_s"][ids] = latency_s[known]
    result["preemptions"][ids] = preemptions[known]
    return result
