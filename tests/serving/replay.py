"""A replay of requests at given experts through the closed form, for tests of the serving floor."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.serving import (
    FleetProfile,
    ServingConfig,
    advance,
    assign_slot,
    empty_state,
    enqueue,
    evicted_content,
    served_output_tokens,
    with_context_limit,
)

COMPLETED, REJECTED, DROPPED = "completed", "rejected", "dropped"
REJECTED_TOO_LONG = "rejected_too_long"
# Schedulers under which all requests of an expert share its KV cache, so that it may run out.
SHARED_MEMORY = ("prefill_first", "chunked_prefill")


class Trace(NamedTuple):
    """T requests, each at a given expert (-1 = dropped)."""

    arrival_s: np.ndarray  # [T] float64
    expert: np.ndarray  # [T]
    prompt_tokens: np.ndarray  # [T]
    output_tokens: np.ndarray  # [T, N]

    @property
    def gap_after_s(self) -> np.ndarray:
        """[T] float32; the last is infinite, to drain."""
        return np.append(np.diff(self.arrival_s), np.inf).astype(np.float32)


def _outcome(state):
    return (state.request_id, state.ttft_s, state.latency_s, state.preemptions)


def route_one(config, profile, carry, x):
    """Route one request and let time pass to the next: a step of a scan."""
    state, request_id = carry
    gap_s, expert, prompt, output = x
    profile = with_context_limit(config.scheduler, profile)
    output = served_output_tokens(profile, prompt, output)
    assignment = assign_slot(profile, state, expert, prompt, output)
    gone = evicted_content(assignment, _outcome(state))
    gone = (jnp.where(assignment.accepted, gone[0], -1), *gone[1:])
    state = enqueue(assignment, state, request_id, prompt, output)
    state, progress = advance(config, profile, state, gap_s)
    return (state, request_id + 1), (assignment, gone, state, progress)


@functools.partial(jax.jit, static_argnums=0)
def scan_requests(
    config: ServingConfig, profile: FleetProfile, state, first_id, gap_s, expert, prompt, output
):
    """Route T requests from ``state``; returns the final state and, per step, what left and what happened."""

    def step(carry, x):
        carry, (assigned, gone, state, progress) = route_one(config, profile, carry, x)
        sums = (
            progress.busy_s,
            progress.kv_token_s,
            jnp.sum(progress.completed, dtype=jnp.int32),
            jnp.sum(state.live, dtype=jnp.int32),
            progress.rounds,
        )
        return carry, (assigned.accepted, assigned.too_long, gone, sums)

    (state, _), out = jax.lax.scan(step, (state, first_id), (gap_s, expert, prompt, output))
    return state, out


@functools.partial(jax.jit, static_argnums=0)
def scan_states(config: ServingConfig, profile: FleetProfile, gap_s, expert, prompt, output):
    """As :func:`scan_requests` from an empty fleet; returns assignments, states and progress, [T, ...]."""

    def step(carry, x):
        carry, (assigned, _, state, progress) = route_one(config, profile, carry, x)
        return carry, (assigned, state, progress)

    start = (empty_state(config), jnp.int32(0))
    return jax.lax.scan(step, start, (gap_s, expert, prompt, output))[1]


def on_device(trace: Trace):
    """The arguments of the scans: gaps, experts, prompts, outputs."""
    return (
        jnp.asarray(trace.gap_after_s),
        jnp.asarray(trace.expert, jnp.int32),
        jnp.asarray(trace.prompt_tokens, jnp.int32),
        jnp.asarray(trace.output_tokens, jnp.int32),
    )


def replay(config: ServingConfig, profile: FleetProfile, trace: Trace, chunk: int | None = None):
    """Replay a trace and drain, ``chunk`` requests a call. Returns a dict of NumPy arrays by request."""
    count = len(trace.arrival_s)
    chunk = chunk or count
    assert count % chunk == 0
    profile = jax.tree.map(jnp.asarray, profile)
    state, parts = empty_state(config), []
    columns = on_device(trace)
    for start in range(0, count, chunk):
        part = [column[start : start + chunk] for column in columns]
        state, out = scan_requests(config, profile, state, jnp.int32(start), *part)
        parts.append(out)
    return gather(
        trace, jax.device_get(state), jax.tree.map(lambda *p: np.concatenate(p), *jax.device_get(parts))
    )


def gather(trace: Trace, state, out):
    """Sort what a scan left behind by request: a dict of NumPy arrays."""
    accepted, too_long, gone, sums = out
    count = len(trace.arrival_s)
    left = tuple(np.asarray(x).ravel() for x in _outcome(state))
    request_id, ttft_s, latency_s, preemptions = (
        np.concatenate([g, x]) for g, x in zip(gone, left, strict=True)
    )
    known = (request_id >= 0) & np.concatenate([np.ones(count, bool), ~np.asarray(state.live).ravel()])
    ids = request_id[known]
    assert np.unique(ids).size == ids.size, "a request left twice"
    status = np.where(np.asarray(trace.expert) < 0, DROPPED, REJECTED).astype(object)
    status[np.asarray(too_long)] = REJECTED_TOO_LONG
    status[ids] = COMPLETED
    result = {
        "status": status,
        "accepted": np.asarray(accepted),
        "ttft_s": np.full(count, np.nan),
        "latency_s": np.full(count, np.nan),
        "preemptions": np.zeros(count, int),
        "still_live": int(np.sum(state.live)),
        "busy_s": sums[0].astype(np.float64).sum(axis=0),
        "kv_token_s": sums[1].astype(np.float64).sum(axis=0),
        "completed_after": sums[2].cumsum(),
        "in_flight_after": sums[3],
        "rounds": sums[4],
    }
    result["ttft_s"][ids] = ttft_s[known]
    result["latency_s"][ids] = latency_s[known]
    result["preemptions"][ids] = preemptions[known]
    return result
