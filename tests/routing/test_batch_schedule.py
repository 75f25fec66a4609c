"""The schedule of a batch against one made request by request, alone and beside fleets without room."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing.batch_schedule import schedule_batch
from qos_jax.routing.outlook import predicted_outlook
from qos_jax.routing.projection import project
from tests.routing.seen import EXPERTS, observation

SLOTS, LANES = 9, 6
ROOM = 100  # KV memory in requests of 110 tokens; 3 = short of memory, too


def lanes(max_running, kv_tokens):
    """Return LANES observations of SLOTS slots: running requests, then waiting ones, as many as drawn."""
    rng = np.random.default_rng(0)
    seen = observation(slots=1)
    live = np.zeros((LANES, EXPERTS, SLOTS), bool)
    running = live.copy()
    for lane in range(LANES):
        for expert in range(EXPERTS):
            count = rng.integers(0, SLOTS)
            batch = min(rng.integers(0, count + 1), max_running)
            live[lane, expert, SLOTS - count :] = True
            running[lane, expert, SLOTS - count : SLOTS - count + batch] = True
    shape = live.shape
    generated = np.where(running, rng.integers(1, 15, shape), 0)
    slots = {
        "live": live,
        "running": running,
        "age_s": np.where(live, rng.uniform(0.0, 2.0, shape), 0.0).astype(np.float32),
        "slot_prompt_tokens": np.where(live, 100, 0).astype(np.int32),
        "slot_generated_tokens": generated.astype(np.int32),
        "slot_prefill_left_tokens": np.zeros(shape, np.int32),
        "slot_predicted_output_tokens": np.where(live, rng.integers(16, 60, shape), 1.0).astype(np.float32),
        "slot_predicted_quality": np.where(live, 0.5, 0.0).astype(np.float32),
        "slot_ttft_s": np.where(running, 0.1, -1.0).astype(np.float32),
    }
    profile = dataclasses.replace(
        seen.profile,
        max_running=jnp.full(EXPERTS, max_running, jnp.int32),
        kv_capacity_tokens=jnp.full(EXPERTS, kv_tokens, jnp.int32),
        decode_per_seq_s=jnp.full(EXPERTS, 1e-3, jnp.float32),
    )
    one = dataclasses.replace(seen, profile=profile)
    many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (LANES, *leaf.shape)), one)
    return dataclasses.replace(many, **{name: jnp.asarray(leaf) for name, leaf in slots.items()})


scheduled = jax.jit(jax.vmap(lambda seen: schedule_batch(predicted_outlook(seen))))
projected = jax.jit(jax.vmap(lambda seen: project(predicted_outlook(seen))))


def by_hand(outlook, lane, expert):
    """Return who is queued, when each of them starts, and when the newcomer does; of one expert, in order."""
    profile, at = outlook.profile, (lane, expert)
    most = int(profile.max_running[at])
    live, running = np.asarray(outlook.live[at]), np.asarray(outlook.running[at])
    left, context = np.asarray(outlook.left_tokens[at]), np.asarray(outlook.context_tokens[at])
    room = float(profile.kv_capacity_tokens[at]) + running.sum()
    queued, start = np.zeros(SLOTS, bool), np.zeros(SLOTS)
    ends, held, count = [], 0.0, 0
    for slot in np.flatnonzero(live):
        need = left[slot] if running[slot] else max(left[slot] - 1.0, 0.0)
        held, count = held + context[slot] + 1.0, count + 1
        if not running[slot] and (count > most or held > room):
            queued[slot], start[slot] = True, min(ends)
            ends.remove(min(ends))
        ends.append(start[slot] + need)
    fits = count < most and held + float(outlook.new_prompt_tokens[lane]) + 1.0 <= room
    return queued, start, 0.0 if fits else min(ends), fits


@pytest.mark.parametrize(("max_running", "kv_tokens"), [(3, 10_000), (SLOTS + 1, 450), (SLOTS + 1, 10_000)])
def test_is_the_one_made_request_by_request(max_running, kv_tokens):
    seen = lanes(max_running, kv_tokens)
    schedule, outlook = jax.device_get((scheduled(seen), jax.vmap(predicted_outlook)(seen)))
    for lane in range(LANES):
        for expert in range(EXPERTS):
            queued, start, new_start, fits = by_hand(outlook, lane, expert)
            np.testing.assert_array_equal(schedule.queued[lane, expert], queued)
            np.testing.assert_allclose(schedule.start[lane, expert], start, rtol=1e-6)
            waiting = outlook.live[lane, expert] & ~outlook.running[lane, expert]
            np.testing.assert_array_equal(schedule.joins[lane, expert], waiting & ~queued)
            assert bool(schedule.new_joins[lane, expert]) == fits
            np.testing.assert_allclose(schedule.new_start[lane, expert], new_start, rtol=1e-6)
    assert schedule.queued.any() == (max_running == 3 or kv_tokens == 450)


def test_a_fleet_without_room_beside_it_changes_nothing():
    """Where all have room no queue is computed; one fleet without it has that done for all."""
    roomy, crowded = lanes(SLOTS + 1, 10_000), lanes(3, 10_000)
    alone = scheduled(roomy)
    both = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), roomy, crowded)
    beside = jax.tree.map(lambda leaf: leaf[:LANES], scheduled(both))
    jax.tree.map(np.testing.assert_array_equal, alone, beside)


def test_company_is_added_pair_by_pair():
    seen = lanes(3, 10_000)
    schedule, outlook, projection = jax.device_get(
        (scheduled(seen), jax.vmap(predicted_outlook)(seen), projected(seen))
    )
    profile = outlook.profile
    for lane in range(LANES):
        for expert in range(EXPERTS):
            at = lane, expert
            live, queued = outlook.live[at], schedule.queued[at]
            start, needs = schedule.start[at], schedule.needs[at]
            last = start + needs  # in float32, as who starts when another ends has just the same instant
            context = outlook.context_tokens[at] + (live & ~outlook.running[at])
            for i in np.flatnonzero(live):
                decode_s = float(profile.decode_base_s[at]) * float(last[i])
                for j in np.flatnonzero(live):
                    shared = np.clip(float(last[i] - start[j]), 0.0, needs[j])
                    per_token_s = profile.decode_per_context_token_s[at] * (context[j] + 0.5 * (shared - 1.0))
                    decode_s += shared * (profile.decode_per_seq_s[at] + per_token_s)
                    if queued[j] and (start[j] < last[i] or i == j):
                        decode_s += schedule.alone_s[at][j]
                np.testing.assert_allclose(projection.decode_s[at][i], decode_s, rtol=1e-5)
