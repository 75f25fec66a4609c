"""Arrival processes as pure JAX: Poisson, gamma, two-state MMPP, rate profile, all of them, or a recording.

One construction covers them, exactly: a renewal process of unit-mean gaps runs in *operational time*, and
operational time passes at the momentary rate, which is piecewise constant in time (a profile bin meets a
sojourn of the two-state chain). A gap is found by walking over those pieces, so no discretisation enters.
Time rescaling: Daley and Vere-Jones, "An Introduction to the Theory of Point Processes", vol. 1, ch. 7.4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qos_jax.errors import input_error


@struct.dataclass
class Recording:
    """Gaps of a recording, in place of drawn ones; see :func:`with_recording`."""

    gaps: jax.Array  # [G] float32, over their mean
    replays: jax.Array  # [] bool, whether gaps are these, at the rate of the process


@struct.dataclass
class ArrivalProcess:
    """Parameters of an arrival process; every number is a traced leaf, so rates may differ per vmap lane.

    Build it with :func:`poisson`, :func:`gamma`, :func:`mmpp`, :func:`diurnal` or :func:`make_process`;
    :func:`with_recording` adds recorded gaps to it.
    """

    rate_per_s: jax.Array  # [] float32, mean arrivals per second, > 0
    cv: jax.Array  # [] float32, coefficient of variation of gaps in operational time; 1 = Poisson
    burst_factor: jax.Array  # [] float32, rate in the burst state / rate in the calm state; 1 = no bursts
    burst_mean_s: jax.Array  # [] float32, mean seconds in the burst state (exponential)
    calm_mean_s: jax.Array  # [] float32, mean seconds in the calm state (exponential)
    profile: jax.Array  # [P] float32, relative rate per bin of the period, mean 1
    bin_s: jax.Array  # [] float32, seconds per bin of the profile
    recording: Recording | None = None  # of gaps to replay instead; None = there is none
    is_gamma: bool = struct.field(pytree_node=False, default=False)  # False: exponential draws, cv unread
    is_mmpp: bool = struct.field(pytree_node=False, default=False)  # False: no chain, burst_* unread


@struct.dataclass
class ArrivalState:
    """State of an arrival process between two arrivals; it holds no absolute time."""

    bin: jax.Array  # [] int32, profile bin, in [0, P)
    bin_left_s: jax.Array  # [] float32, seconds left in it
    in_burst: jax.Array  # [] bool, state of the chain
    state_left_s: jax.Array  # [] float32, seconds left in that state
    position: jax.Array | None = None  # [] int32, of the next recorded gap, in [0, G); None = no recording


def make_process(
    rate_per_s: float | jax.Array,
    *,
    cv: float | jax.Array = 1.0,
    burst_factor: float | jax.Array = 1.0,
    burst_mean_s: float | jax.Array = 1.0,
    calm_mean_s: float | jax.Array = 1.0,
    profile: Sequence[float] | np.ndarray | jax.Array = (1.0,),
    bin_s: float | jax.Array = 60.0,
) -> ArrivalProcess:
    """Return a process with any mix of gamma gaps, bursts and profile.

    What is switched on decides what is compiled: a concrete ``cv`` of 1 gives exponential draws (a gamma
    draw is a rejection loop), a concrete ``burst_factor`` of 1 leaves the chain out, a profile of one bin
    leaves the loop over bins out. To sweep ``cv`` or ``burst_factor`` across 1, replace the leaf of a
    process built with another value. Leaves may also be traced numbers, which are not checked.

    Args:
      rate_per_s: mean arrivals per second, > 0.
      cv: coefficient of variation of the gaps at constant rate, > 0.
      burst_factor: rate in bursts over rate in calm, > 0.
      burst_mean_s: mean length of a burst, seconds, > 0.
      calm_mean_s: mean time between bursts, seconds, > 0.
      profile: [P] relative rates >= 0 of a periodic profile; divided by their mean.
      bin_s: seconds per bin, > 0.

    Raises:
      InputError: a concrete number out of its range.
    """
    numbers = {"rate_per_s": rate_per_s, "cv": cv, "burst_factor": burst_factor}
    numbers |= {"burst_mean_s": burst_mean_s, "calm_mean_s": calm_mean_s, "bin_s": bin_s}
    for field, value in numbers.items():
        traced = isinstance(value, jax.core.Tracer)
        if not traced and not np.all(np.isfinite(value) & (np.asarray(value) > 0)):
            raise input_error(f"{value} is out of range", field=field, remedy="give a finite number above 0")
    _check_list("profile", profile, "rates", "give a relative rate per bin, such as (0.5, 1.5)")
    shape = jnp.asarray(profile, jnp.float32)
    leaves: dict[str, Any] = {field: jnp.asarray(value, jnp.float32) for field, value in numbers.items()}
    return ArrivalProcess(
        **leaves,
        profile=shape / jnp.mean(shape),
        is_gamma=isinstance(cv, jax.core.Tracer) or bool(np.any(np.asarray(cv) != 1)),
        is_mmpp=isinstance(burst_factor, jax.core.Tracer) or bool(np.any(np.asarray(burst_factor) != 1)),
    )


def poisson(rate_per_s: float | jax.Array) -> ArrivalProcess:
    """Return a Poisson process of the given rate."""
    return make_process(rate_per_s)


def gamma(rate_per_s: float | jax.Array, cv: float | jax.Array) -> ArrivalProcess:
    """Return a renewal process of gamma gaps with mean 1 / rate and coefficient of variation ``cv``."""
    return make_process(rate_per_s, cv=cv)


def mmpp(
    rate_per_s: float | jax.Array,
    burst_factor: float | jax.Array,
    burst_mean_s: float | jax.Array,
    calm_mean_s: float | jax.Array,
) -> ArrivalProcess:
    """Return a two-state Markov-modulated Poisson process whose long-run mean rate is ``rate_per_s``."""
    return make_process(
        rate_per_s, burst_factor=burst_factor, burst_mean_s=burst_mean_s, calm_mean_s=calm_mean_s
    )


def diurnal(
    rate_per_s: float | jax.Array,
    profile: Sequence[float] | np.ndarray | jax.Array,
    bin_s: float | jax.Array,
    cv: float | jax.Array = 1.0,
) -> ArrivalProcess:
    """Return a process whose rate follows a periodic profile of mean 1 times ``rate_per_s``."""
    return make_process(rate_per_s, profile=profile, bin_s=bin_s, cv=cv)


def with_recording(
    process: ArrivalProcess, gap_s: np.ndarray | jax.Array, replays: bool | jax.Array = True
) -> ArrivalProcess:
    """Return the process with recorded gaps, replayed at its mean rate where ``replays`` holds.

    A replay begins at a random gap of the recording and wraps around at its end. ``replays`` may be traced,
    so that some vmap lanes replay and others draw.

    Args:
      process: draws the gaps where they are not replayed.
      gap_s: [G] recorded gaps in any unit, as their mean is scaled to 1 / rate.
      replays: [] bool.

    Raises:
      InputError: concrete gaps that are negative, not finite, none, or all 0.
    """
    _check_list("gap_s", gap_s, "gaps", "give those of a trace")
    recorded_s = jnp.asarray(gap_s, jnp.float32)
    recording = Recording(recorded_s / jnp.mean(recorded_s), jnp.asarray(replays, bool))
    return dataclasses.replace(process, recording=recording)


def _check_list(field: str, values: Any, what: str, remedy: str) -> None:
    """Refuse concrete values that are no list of finite numbers >= 0, one of them above 0."""
    if not isinstance(values, jax.core.Tracer):
        v = np.asarray(values, dtype=np.float64)
        if v.ndim != 1 or not np.all(np.isfinite(v)) or np.any(v < 0) or not v.sum() > 0:
            fault = f"is not a list of finite {what} >= 0, one above 0"
            raise input_error(fault, field=field, remedy=remedy)


def init_arrivals(key: jax.Array, process: ArrivalProcess, start_bin: int | jax.Array = 0) -> ArrivalState:
    """Return the state at time 0: at the start of a profile bin, the chain in its stationary distribution.

    The first gap is a whole gap of the renewal process, as if a request had just arrived.

    Args:
      key: random key, of the chain's state and of the gap at which a recording begins.
      process: the process.
      start_bin: [] int32, bin of the profile; taken modulo P.
    """
    state_key, left_key = jax.random.split(key)
    burst_share = process.burst_mean_s / (process.burst_mean_s + process.calm_mean_s)
    in_burst = jax.random.uniform(state_key, dtype=jnp.float32) < burst_share
    return ArrivalState(
        bin=jnp.asarray(start_bin, jnp.int32) % process.profile.shape[0],
        bin_left_s=process.bin_s,
        in_burst=in_burst,
        state_left_s=_sojourn_s(left_key, process, in_burst),
        position=_any_position(key, process),
    )


def next_gap(key: jax.Array, process: ArrivalProcess, state: ArrivalState) -> tuple[jax.Array, ArrivalState]:
    """Draw the time to the next arrival and advance the process to it.

    Args:
      key: random key.
      process: the process.
      state: right after the arrival before, or of :func:`init_arrivals`.

    Returns:
      gap_s: [] float32, seconds; infinite if the (traced, unchecked) rate is not above 0.
      state: the process right after that arrival.
    """
    draw_key, walk_key = jax.random.split(key)
    return _arrive(walk_key, process, state, _unit_gaps(draw_key, process, ()))


def sample_gaps(
    key: jax.Array, process: ArrivalProcess, num_gaps: int, start_bin: int | jax.Array = 0
) -> jax.Array:
    """Draw consecutive gaps from a fresh state.

    Args:
      key: random key.
      process: the process.
      num_gaps: T, static.
      start_bin: [] int32, bin of the profile at time 0.

    Returns:
      [T] float32, seconds.
    """
    init_key, draw_key, walk_key = jax.random.split(key, 3)
    units = _unit_gaps(draw_key, process, (num_gaps,))
    if not process.is_mmpp and process.profile.shape[0] == 1 and process.recording is None:
        return units / process.rate_per_s

    def one(state: ArrivalState, inputs: tuple[jax.Array, jax.Array]) -> tuple[ArrivalState, jax.Array]:
        gap_s, state = _arrive(inputs[0], process, state, inputs[1])
        return state, gap_s

    keys = jax.random.split(walk_key, num_gaps)
    return jax.lax.scan(one, init_arrivals(init_key, process, start_bin), (keys, units))[1]


def _unit_gaps(key: jax.Array, process: ArrivalProcess, shape: tuple[int, ...]) -> jax.Array:
    """Draw gaps of mean 1 and coefficient of variation ``cv``."""
    if not process.is_gamma:
        return jax.random.exponential(key, shape, jnp.float32)
    variance = process.cv * process.cv
    return jax.random.gamma(key, jnp.broadcast_to(1.0 / variance, shape), shape, jnp.float32) * variance


def _sojourn_s(key: jax.Array, process: ArrivalProcess, in_burst: jax.Array) -> jax.Array:
    mean_s = jnp.where(in_burst, process.burst_mean_s, process.calm_mean_s)
    return jax.random.exponential(key, dtype=jnp.float32) * mean_s


def _any_position(key: jax.Array, process: ArrivalProcess) -> jax.Array | None:
    if process.recording is None:
        return None
    # Folded in, so that the other draws are those of the same process without a recording.
    return jax.random.randint(jax.random.fold_in(key, 2), (), 0, process.recording.gaps.shape[0], jnp.int32)


def _arrive(
    key: jax.Array, process: ArrivalProcess, state: ArrivalState, unit: jax.Array
) -> tuple[jax.Array, ArrivalState]:
    """Return the gap that ``unit`` of operational time comes to, or the recorded one, and the state after."""
    gap_s, state = _walk(key, process, state, unit)
    if process.recording is None or state.position is None:
        return gap_s, state
    gaps = process.recording.gaps
    recorded_s = gaps[state.position] / process.rate_per_s
    state = dataclasses.replace(state, position=(state.position + 1) % gaps.shape[0])
    return jnp.where(process.recording.replays, recorded_s, gap_s), state


def _walk(
    key: jax.Array, process: ArrivalProcess, state: ArrivalState, unit: jax.Array
) -> tuple[jax.Array, ArrivalState]:
    """Turn ``unit`` of operational time into seconds, over pieces of constant rate."""
    num_bins = process.profile.shape[0]
    if not process.is_mmpp and num_bins == 1:
        return unit / process.rate_per_s, state
    burst_share = process.burst_mean_s / (process.burst_mean_s + process.calm_mean_s)
    calm_rate = process.rate_per_s / (1.0 - burst_share + burst_share * process.burst_factor)

    def piece(state: ArrivalState) -> tuple[jax.Array, jax.Array]:
        rate, left_s = process.rate_per_s, jnp.asarray(jnp.inf, jnp.float32)
        if process.is_mmpp:
            rate = jnp.where(state.in_burst, calm_rate * process.burst_factor, calm_rate)
            left_s = state.state_left_s
        if num_bins > 1:
            rate = rate * process.profile[state.bin]
            left_s = jnp.minimum(left_s, state.bin_left_s)
        return rate, left_s

    def spend(key: jax.Array, state: ArrivalState, time_s: jax.Array, ends: bool) -> ArrivalState:
        """Let ``time_s`` pass; ``ends`` says that it is the whole piece, so something must change."""
        if num_bins > 1:
            over = (state.bin_left_s <= time_s) & ends
            state = dataclasses.replace(
                state,
                bin=jnp.where(over, (state.bin + 1) % num_bins, state.bin),
                bin_left_s=jnp.where(over, process.bin_s, state.bin_left_s - time_s),
            )
        if process.is_mmpp:
            over = (state.state_left_s <= time_s) & ends
            in_burst = state.in_burst ^ over
            fresh_s = _sojourn_s(key, process, in_burst)
            state = dataclasses.replace(
                state, in_burst=in_burst, state_left_s=jnp.where(over, fresh_s, state.state_left_s - time_s)
            )
        return state

    def outlasts(carry: tuple[jax.Array, ArrivalState, jax.Array, jax.Array]) -> jax.Array:
        _, state, left, _ = carry
        rate, left_s = piece(state)
        return (left > rate * left_s) & (process.rate_per_s > 0)

    def next_piece(
        carry: tuple[jax.Array, ArrivalState, jax.Array, jax.Array],
    ) -> tuple[jax.Array, ArrivalState, jax.Array, jax.Array]:
        key, state, left, gap_s = carry
        rate, left_s = piece(state)
        key, sojourn_key = jax.random.split(key) if process.is_mmpp else (key, key)
        return key, spend(sojourn_key, state, left_s, True), left - rate * left_s, gap_s + left_s

    carry = (key, state, unit, jnp.zeros_like(unit))
    key, state, left, gap_s = jax.lax.while_loop(outlasts, next_piece, carry)
    rate, _ = piece(state)
    rest_s = left / rate
    return gap_s + rest_s, spend(key, state, rest_s, False)
