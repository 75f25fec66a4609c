"""The index of sent prefixes against the caches themselves, and what it forgets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing.fleet_state import Request, empty_fleet
from qos_jax.routing.fleet_step import step_fleet
from qos_jax.routing.observation import see_prefixes
from qos_jax.routing.sent_prefixes import after_sending, expected_at, no_prefixes, without_caches_of
from qos_jax.serving import PrefixLevel, ServiceLimits, ServingConfig, with_context_limit
from tests.serving.test_prefix import RUNNING, WAITING, fleet, random_trace


@functools.partial(jax.jit, static_argnums=0)
def follow(config, profile, gap_s, request, expert):
    """What the index and the caches hold of each prompt at its expert, on arrival, [T] both."""
    profile, limits = with_context_limit(config.scheduler, profile), ServiceLimits(jnp.float32(1.0))

    def step(carry, x):
        state, index, number = carry
        gap_s, request, expert = x
        expected = expected_at(config, index, request)[expert]
        true = see_prefixes(config, profile, state, request).cached_tokens[expert]
        state, routed, _ = step_fleet(config, profile, state, request, number, expert, gap_s, limits)
        index = after_sending(config, profile, index, request, expert, routed.accepted, jnp.float32(1.0))
        return (state, index, number + 1), (expected, true)

    start = (empty_fleet(config), no_prefixes(config), jnp.int32(0))
    return jax.lax.scan(step, start, (gap_s, request, expert))[1]


def followed(scheduler, kv_tokens, sessions, seed):
    rng = np.random.default_rng(seed)
    arrival_s, prompt, output, expert, group, prefix = random_trace(rng, 2, sessions)
    quality = np.ones(output.shape, np.float32)
    request = Request(
        *(prompt.astype(np.int32), output.astype(np.int32), quality, output.astype(np.float32), quality),
        *(group.astype(np.int32), prefix.astype(np.int32)),
    )
    gap_s = np.append(np.diff(arrival_s) + 1.0, np.inf).astype(np.float32)
    config = ServingConfig(2, RUNNING, WAITING, scheduler, 16)
    profile = jax.tree.map(jnp.asarray, fleet(rng, kv_tokens))
    return jax.device_get(follow(config, profile, gap_s, request, expert.astype(np.int32)))


@pytest.mark.parametrize("sessions", [False, True])
@pytest.mark.parametrize(
    ("scheduler", "off"), [("prefill_first", 0.0), ("chunked_prefill", 0.0), ("llama_cpp", 0.1)]
)
def test_a_router_alone_that_knows_lengths_expects_what_is_cached(scheduler, off, sessions):
    hits = []
    for seed in range(3):
        # In the second most is forgotten before it is asked for again.
        for kv_tokens, tight in ((60_000, 0.0), (1200, 0.015)):
            expected, true = followed(scheduler, kv_tokens, sessions, seed)
            assert np.abs(expected - true).sum() <= (off + tight) * true.sum()
            hits.append(true.sum())
    if scheduler != "llama_cpp":  # whose host memory keeps all
        assert sum(hits[1::2]) < 0.9 * sum(hits[::2])
    assert min(hits[::2]) > 0


def sent(index, config, *requests, share=1.0):
    """The index after requests of (group, prompt tokens), answered by 16 tokens each, at expert 1."""
    held = fleet(np.random.default_rng(0), 1000)
    for group, prompt in requests:
        request = one(group, prompt, config.prefix_levels)
        index = after_sending(config, held, index, request, jnp.int32(1), jnp.bool_(True), jnp.float32(share))
    return index


def one(group, prompt, levels=0):
    ones = jnp.ones(2)
    path = tuple(PrefixLevel(jnp.int32(g), jnp.int32(e)) for g, e in ((7, 64), (group, prompt)))
    return Request(
        *(jnp.int32(prompt), jnp.full(2, 16), ones, 16 * ones, ones),
        *(jnp.int32(group), jnp.int32(prompt), path[:levels] or None),
    )


CONFIG = ServingConfig(2, 2, 2, "chunked_prefill", 4)


def test_others_push_out_what_was_sent_by_their_share_of_the_load():
    requests = ((0, 320), (1, 320))
    alone = sent(no_prefixes(CONFIG), CONFIG, *requests)
    np.testing.assert_array_equal(expected_at(CONFIG, alone, one(0, 320)), [0, 304])
    half = sent(no_prefixes(CONFIG), CONFIG, *requests, share=0.5)
    np.testing.assert_array_equal(expected_at(CONFIG, half, one(0, 320)), [0, 304])  # 1000 - 2 x 336 are left
    third = sent(no_prefixes(CONFIG), CONFIG, *requests, share=0.4)
    np.testing.assert_array_equal(expected_at(CONFIG, third, one(0, 320)), [0, 160])
    np.testing.assert_array_equal(expected_at(CONFIG, third, one(1, 320)), [0, 304])


def test_nested_prompts_share_the_beginning_of_their_system_prompt():
    config = ServingConfig(2, 2, 2, "chunked_prefill", 4, 2)
    index = sent(no_prefixes(config), config, (0, 200), (1, 300), (0, 260))
    assert np.sum(np.asarray(index.group) >= 0) == 2  # the later turn takes the place of the earlier
    for group, tokens in ((0, 256), (1, 288), (2, 64)):
        np.testing.assert_array_equal(expected_at(config, index, one(group, 400, 2)), [0, tokens])


def test_what_a_server_held_is_forgotten_when_it_goes_down():
    index = sent(no_prefixes(CONFIG), CONFIG, (0, 320))
    kept = without_caches_of(index, jnp.array([True, False]))
    np.testing.assert_array_equal(expected_at(CONFIG, kept, one(0, 320)), [0, 304])
    lost = without_caches_of(index, jnp.array([False, True]))
    np.testing.assert_array_equal(expected_at(CONFIG, lost, one(0, 320)), [0, 0])
    np.testing.assert_array_equal(expected_at(CONFIG, sent(lost, CONFIG, (0, 320)), one(0, 320)), [0, 304])


def test_a_request_without_a_group_only_takes_room():
    index = sent(no_prefixes(CONFIG), CONFIG, (0, 320), (-1, 900))
    assert np.sum(np.asarray(index.group) >= 0) == 1
    np.testing.assert_array_equal(expected_at(CONFIG, index, one(0, 320)), [0, 80])
    np.testing.assert_array_equal(expected_at(CONFIG, index, one(-1, 320)), [0, 0])
