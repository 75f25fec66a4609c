"""Prefix caches: the reference by hand, and the closed form against it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing.fleet_state import Request, empty_fleet, remaining_outcomes
from qos_jax.routing.fleet_step import step_fleet
from qos_jax.serving import FleetProfile, ServiceLimits, ServingConfig, with_context_limit
from qos_jax.serving.reference import ReferenceProfile, simulate_expert, simulate_fleet
from qos_jax.serving.reference_cache import BlockPool, SlotCache, content_ids, hashed_content
from qos_jax.serving.state import PrefixLevel
from qos_jax.workload.conversations import SystemPrompts, as_conversations
from qos_jax.workload.prefix_paths import prefix_paths
from qos_jax.workload.request_table import RequestTable, with_prefixes

# 1 s + 0.1 s a token of prompt; a decode iteration takes 0.5 s.
PROFILE = ReferenceProfile(4, 8, 1000, 320, 1.0, 0.1, 0.0, 0.5, 0.0, 0.0)
RUNNING, WAITING, COUNT = 8, 16, 60


def served(requests, scheduler="chunked_prefill", profile=PROFILE):
    """Serve (arrival, prompt, output, group, prefix) on one expert; cached tokens and TTFT of each."""
    arrival, prompt, output, group, prefix = (np.array(column) for column in zip(*requests, strict=True))
    content = content_ids(group, prefix, prompt + output, 1 if scheduler == "llama_cpp" else 16)
    run = simulate_expert(profile, arrival, prompt, output, scheduler=scheduler, content=content)
    assert all(outcome.status == "completed" for outcome in run.outcomes)
    return [o.cached_tokens for o in run.outcomes], [o.ttft_s for o in run.outcomes]


@pytest.mark.parametrize("scheduler", ["prefill_first", "chunked_prefill"])
class TestBlocks:
    def test_only_what_is_not_cached_is_prefilled(self, scheduler):
        cached, ttft_s = served([(0.0, 70, 1, 0, 40), (50.0, 60, 1, 0, 40), (90.0, 60, 1, 1, 40)], scheduler)
        assert cached == [0, 32, 0]  # whole blocks of 16 within the 40 that are shared
        assert ttft_s == pytest.approx([8.0, 1.0 + 2.8, 7.0])

    def test_requests_of_one_boundary_share(self, scheduler):
        cached, ttft_s = served([(0.0, 40, 1, 0, 40), (0.0, 40, 1, 0, 40)], scheduler)
        assert cached == [0, 32]
        assert ttft_s == pytest.approx([1.0 + 4.8] * 2)

    def test_the_last_token_is_always_computed(self, scheduler):
        cached, _ = served([(0.0, 48, 1, 0, 48), (50.0, 48, 1, 0, 48)], scheduler)
        assert cached == [0, 32]  # not 48: the last block is computed again

    def test_a_turn_finds_the_answer_before_it(self, scheduler):
        # The 40 + 24 tokens of the first turn, but for the last one generated, are in the cache.
        cached, _ = served([(0.0, 40, 24, 0, 0), (90.0, 100, 1, 0, 64)], scheduler)
        assert cached == [0, 48]

    def test_the_longest_unused_goes_first_and_its_end_first(self, scheduler):
        # Of 20 blocks group 0 lets go of 6 and group 1 of 6; a request of 11 takes the 8 never used and 3
        # of group 0, from its end.
        first = [(0.0, 95, 1, 0, 0), (50.0, 95, 1, 1, 0), (100.0, 175, 1, -1, 0)]
        assert served([*first, (200.0, 95, 1, 0, 95)], scheduler)[0] == [0, 0, 0, 48]
        assert served([*first, (200.0, 95, 1, 1, 95)], scheduler)[0] == [0, 0, 0, 80]

    def test_shared_blocks_take_memory_once(self, scheduler):
        # 12 blocks each, 10 of them shared: both fit into 20 only together.
        requests = [(0.0, 190, 1, 0, 160), (0.0, 190, 1, 0, 160)]
        together, _ = served(requests, scheduler)[1], None
        assert together[0] == together[1]
        apart = served([(*r[:3], -1, 0) for r in requests], scheduler)[1]
        assert apart[0] < apart[1]


def test_blocks_are_never_lost_nor_held_twice():
    rng = np.random.default_rng(0)
    pool, running = BlockPool(640), {}
    ids = content_ids(rng.integers(0, 3, 200), np.full(200, 64), np.full(200, 160), 16)
    for order in range(200):
        hit = pool.hit_tokens(ids[order], 128)
        while not pool.has_room(ids[order], 129, hit):
            pool.release(running.popitem()[0])
            hit = pool.hit_tokens(ids[order], 128)
        pool.admit(order, ids[order], 129, hit)
        pool.enter(order, ids[order], 128)
        running[order] = None
        assert len(pool.free) + len(pool.holders) == 40
        assert sum(pool.holders.values()) == sum(len(blocks) for blocks in pool.held.values())
    assert hit == 64


def test_llama_cpp_takes_the_slot_that_shares_most_then_the_longest_unused():
    ids = [list(range(100)), list(range(200, 300)), list(range(50)) + list(range(400, 450))]
    cache = SlotCache(2)
    assert [cache.admit(order, ids[order], 90) for order in (0, 1)] == [0, 0]
    cache.release(1, 99)
    cache.release(0, 99)
    assert cache.admit(2, ids[2], 90) == 50  # the slot of 0, though that of 1 is longer unused
    # What 0 left there was reused by half and more, so it was not saved.
    assert cache.admit(3, ids[0], 90) == 0
    cache.release(2, 99)
    # 3 took the slot of 1, whose tokens were saved: they come back in place of those of 2.
    assert cache.admit(4, ids[1], 90) == 89


def random_trace(rng, experts, sessions):
    """Requests of shared prefixes, or turns of conversations that do not overlap, at random experts."""
    output = rng.integers(2, 60, COUNT)
    if sessions:
        group = np.arange(COUNT) % 12
        prefix, prompt, told = np.zeros(COUNT, int), np.zeros(COUNT, int), np.zeros(12, int)
        for i in range(COUNT):
            prefix[i] = told[group[i]]
            prompt[i] = prefix[i] + rng.integers(5, 100)
            told[group[i]] = prompt[i] + output[i]
        expert = (group * 7) % experts
    else:
        group = rng.integers(-1, 4, COUNT)
        prefix = np.array([100, 37, 250, 180, 0])[group]
        prompt, expert = prefix + rng.integers(1, 200, COUNT), rng.integers(0, experts, COUNT)
    arrival_s = np.cumsum(rng.exponential(0.2, COUNT)).astype(np.float32).astype(float)
    return (
        arrival_s,
        prompt,
        np.repeat(output[:, None], experts, 1),
        expert,
        group,
        np.where(group < 0, 0, prefix),
    )


@functools.partial(jax.jit, static_argnums=0)
def replay(config, profile, gap_s, request, expert):
    profile, limits = with_context_limit(config.scheduler, profile), ServiceLimits(jnp.float32(1.0))

    def step(carry, x):
        fleet, number = carry
        gap_s, request, expert = x
        fleet, routed, passed = step_fleet(config, profile, fleet, request, number, expert, gap_s, limits)
        return (fleet, number + 1), (routed.accepted, routed.evicted, passed.completed_count)

    (fleet, _), (accepted, evicted, completed) = jax.lax.scan(
        step, (empty_fleet(config), jnp.int32(0)), (gap_s, request, expert)
    )
    return accepted, evicted, remaining_outcomes(fleet), completed


def closed_form(scheduler, profile, trace, entries=16, path=None):
    arrival_s, prompt, output, expert, group, prefix = trace
    config = ServingConfig(profile.num_experts, RUNNING, WAITING, scheduler, entries, len(path or ()))
    quality = np.ones(output.shape, np.float32)
    request = Request(
        *(prompt.astype(np.int32), output.astype(np.int32), quality, output.astype(np.float32), quality),
        *(group.astype(np.int32), prefix.astype(np.int32), path),
    )
    gap_s = np.append(np.diff(arrival_s), np.inf).astype(np.float32)
    accepted, evicted, left, completed = jax.device_get(
        replay(config, jax.tree.map(jnp.asarray, profile), gap_s, request, expert.astype(np.int32))
    )
    found = {
        name: np.concatenate([getattr(evicted, name).ravel(), getattr(left, name).ravel()])
        for name in ("request_id", "ttft_s", "latency_s", "cached_tokens")
    }
    assert completed.sum() == accepted.sum()
    ids = found.pop("request_id")
    order = np.argsort(ids[ids >= 0])
    return accepted, {name: values[ids >= 0][order] for name, values in found.items()}


def fleet(rng, kv_capacity_tokens):
    experts = 2
    numbers = [0.01, 5e-5, 2e-8, 0.02, 1e-4, 2e-7, 0.0, 1.0, 1.0]
    return FleetProfile(
        *(np.full(experts, n, np.int32) for n in (RUNNING, WAITING, 2048, kv_capacity_tokens)),
        *((n * rng.uniform(0.7, 1.4, experts)).astype(np.float32) for n in numbers),
    )


@pytest.mark.parametrize("sessions", [False, True])
@pytest.mark.parametrize("scheduler", ["prefill_first", "chunked_prefill"])
def test_equals_the_reference_where_memory_is_ample(scheduler, sessions):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        profile, trace = fleet(rng, 60_000), random_trace(rng, 2, sessions)
        arrival_s, prompt, output, expert, group, prefix = trace
        outcomes, _ = simulate_fleet(
            profile, arrival_s, prompt, output, expert, scheduler, prefix_group=group, prefix_tokens=prefix
        )
        accepted, found = closed_form(scheduler, profile, trace)
        assert [o.status == "completed" for o in outcomes] == accepted.tolist()
        done = [o for o in outcomes if o.status == "completed"]
        cached = np.array([o.cached_tokens for o in done])
        assert cached.sum() > 0.2 * prompt.sum()
        assert abs(found["cached_tokens"].sum() - cached.sum()) <= 0.005 * cached.sum()
        same = found["cached_tokens"] == cached
        np.testing.assert_allclose(found["ttft_s"][same], np.array([o.ttft_s for o in done])[same], rtol=0.02)


@pytest.mark.parametrize("scheduler", ["prefill_first", "chunked_prefill"])
def test_only_whole_blocks_are_found_where_some_are_taken_while_a_request_waits(scheduler):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        profile, trace = fleet(rng, 900), random_trace(rng, 2, seed % 2 == 1)
        cached = closed_form(scheduler, profile, trace)[1]["cached_tokens"]
        assert (cached % 16 == 0).all()
        assert (cached > 0).any()


def test_nested_prefixes_equal_the_reference():
    """Prompts as lists of block hashes: each goes on from a random block of an earlier one."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        hashes, fresh = [], iter(range(10_000))
        for _ in range(COUNT):
            earlier = hashes[rng.integers(len(hashes))] if hashes and rng.random() < 0.8 else []
            kept = earlier[: rng.integers(len(earlier) + 1)]
            hashes.append([*kept, *(next(fresh) for _ in range(rng.integers(1, 4)))])
        prompt = 32 * np.array([len(blocks) for blocks in hashes]) - rng.integers(0, 30, COUNT)
        output, expert = rng.integers(2, 60, COUNT), rng.integers(0, 2, COUNT)
        arrival_s = np.cumsum(rng.exponential(0.2, COUNT)).astype(np.float32).astype(float)
        paths = prefix_paths(hashes, prompt, 32)
        none = PrefixLevel(np.full(COUNT, -1, np.int32), np.zeros(COUNT, np.int32))
        assert 2 <= len(paths.path) <= 4
        path = (*paths.path, *(none,) * (4 - len(paths.path)))  # one program for all
        both = np.repeat(output[:, None], 2, 1)
        profile = fleet(rng, 60_000)
        accepted, found = closed_form(
            "chunked_prefill",
            profile,
            (arrival_s, prompt, both, expert, paths.group, paths.tokens),
            entries=COUNT,
            path=path,
        )
        content = hashed_content(hashes, prompt, prompt + output, 32, 16)
        outcomes, _ = simulate_fleet(
            profile, arrival_s, prompt, both, expert, "chunked_prefill", content=content
        )
        done = [o for o in outcomes if o.status == "completed"]
        assert accepted.all()
        assert len(done) == COUNT
        cached = np.array([o.cached_tokens for o in done])
        np.testing.assert_array_equal(found["cached_tokens"], cached)
        assert cached.sum() > 0.1 * prompt.sum()
        np.testing.assert_allclose(found["latency_s"], [o.latency_s for o in done], rtol=1e-4)


def test_conversations_under_system_prompts_equal_the_reference():
    rng = np.random.default_rng(0)
    output = rng.integers(2, 60, (1, COUNT, 1)).repeat(2, -1)
    one = np.ones(output.shape, np.float32)
    table = RequestTable(rng.integers(5, 60, (1, COUNT)), one, output, one, one)
    system = SystemPrompts(3, 150)
    table = as_conversations(
        table, np.zeros(1, np.uint32), mean_turns=4.0, open_conversations=6, limit_tokens=2000, system=system
    )
    table = jax.tree.map(lambda leaf: leaf[0], with_prefixes(table, 4))  # four levels: one program for all
    # A turn of a conversation never comes before the answer to the last.
    arrival_s = np.cumsum(1.0 + rng.exponential(0.2, COUNT)).astype(np.float32).astype(float)
    expert, profile = rng.integers(0, 2, COUNT), fleet(rng, 60_000)
    prompt, group, prefix = table.prompt_tokens, table.prefix_group, table.prefix_tokens
    trace = (arrival_s, prompt, table.output_tokens, expert, group, prefix)
    accepted, found = closed_form("chunked_prefill", profile, trace, entries=COUNT, path=table.prefix_path)
    content = content_ids(group, prefix, prompt + table.output_tokens[:, 0], 16)
    for ids, of in zip(content, table.prefix_path[0].group.tolist(), strict=True):
        ids[: 150 // 16] = [-1 - 100 * of - block for block in range(150 // 16)]
    outcomes, _ = simulate_fleet(
        profile, arrival_s, prompt, table.output_tokens, expert, "chunked_prefill", content=content
    )
    assert accepted.all()
    cached = np.array([outcome.cached_tokens for outcome in outcomes])
    np.testing.assert_array_equal(found["cached_tokens"], cached)
    assert np.any(cached[prefix == 150] == 144)  # of first turns
    assert cached.max() > 200
    np.testing.assert_allclose(found["latency_s"], [o.latency_s for o in outcomes], rtol=1e-4)


def test_nothing_shared_is_as_without_a_cache():
    rng = np.random.default_rng(0)
    profile, trace = fleet(rng, 3_000), random_trace(rng, 2, sessions=True)
    nothing = (*trace[:4], np.full(COUNT, -1), np.zeros(COUNT, int))
    cached = closed_form("chunked_prefill", profile, nothing)
    plain, _ = simulate_fleet(profile, *trace[:4], "chunked_prefill")
    assert not cached[1]["cached_tokens"].any()
    latency_s = np.array([o.latency_s for o in plain if o.status == "completed"])
    np.testing.assert_allclose(cached[1]["latency_s"], latency_s, rtol=1e-4)
