"""The registry: every policy runs everywhere, errors help, and the bound bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.policies import BOUNDS, HEURISTICS, ORACLES, Policy, policy, upper_bound
from qos_jax.policies.registry import GROUPS, NEVER_DROPPING, NEVER_DROPS, resolve
from qos_jax.serving import ServiceLimits
from qos_jax.serving.reference import ReferenceProfile, simulate_expert
from qos_jax.simulation.simulate import Runs, simulate
from tests.routing.scenes import EXPERTS, SERVING, environment, profile, replay_params, table
from tests.serving.replay import SHARED_MEMORY

T = 40
SEEDS = 3


def episodes(scheduler, policies, allow_drop=False):
    """Every policy on the same replays: actions, rewards and routing decisions, [policies, SEEDS, T] each.

    One program for all: each lane computes every policy's action and takes its own.
    """
    env = environment(scheduler, allow_drop=allow_drop)
    params = [replay_params(seed, T, mean_gap_s=0.06) for seed in range(SEEDS)]
    params = jax.tree.map(lambda *x: jnp.stack(x), *params)
    acts = [(chosen.act_function(), chosen.params) for chosen in policies]

    def run(index, params, key):
        state, _ = env.reset(key, params)

        def step(state, key):
            truth = env.true_observation(params, state)
            actions = [act(act_params, key, truth) for act, act_params in acts]
            assert {(a.dtype, a.shape) for a in actions} == {(np.dtype(np.int32), ())}
            state, result = env.step(key, state, jnp.stack(actions)[index], params)
            return state, (jnp.stack(actions)[index], result.reward, result.info.routed)

        return jax.lax.scan(step, state, jax.random.split(key, T))[1]

    over_seeds = jax.vmap(run, in_axes=(None, 0, 0))
    over_policies = jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))
    keys = jax.random.split(jax.random.key(0), SEEDS)
    return jax.device_get(over_policies(jnp.arange(len(policies)), params, keys))


@pytest.mark.parametrize("scheduler", SHARED_MEMORY)
def test_every_policy_runs(scheduler):
    names = (*HEURISTICS, *ORACLES)
    action, reward, routed = episodes(scheduler, [policy(name, allow_drop=False) for name in names])
    assert np.all((action >= 0) & (action < EXPERTS))
    assert not routed.dropped.any()
    qos = dict(zip(names, reward.sum(axis=-1).mean(axis=-1), strict=True))
    assert min(qos.values()) > 0.0
    assert qos["clairvoyant_greedy"] > qos["random"]
    assert qos["projected_greedy"] > qos["random"]


# Decode iterations dearer than prefill iterations, as of the largest model of the shipped edge fleet.
CHEAP_PREFILL = {"prefill_base_s": [2**-9] * 3, "prefill_per_token_s": [2**-14] * 3}


@pytest.mark.parametrize("scheduler", SHARED_MEMORY)
@pytest.mark.parametrize("changes", [{}, CHEAP_PREFILL])
def test_no_request_gets_more_than_its_bound(scheduler, changes):
    fleet, limits_s = profile(**changes), (0.012, 0.016, 0.03, 0.06)
    rng = np.random.default_rng(0)
    requests = [table(seed, T, output_up_to=12) for seed in range(len(limits_s))]
    runs = Runs(
        profile=fleet,
        limits=ServiceLimits(np.array(limits_s, np.float32)),
        length_log_std=np.ones((4, EXPERTS), np.float32),
        arrival_s=np.cumsum(rng.exponential(0.01, (4, T)), axis=1),
        requests=jax.tree.map(lambda *x: np.stack(x), *requests),
        seed=np.arange(4, dtype=np.uint32),
    )
    records = simulate(SERVING[scheduler], policy("random"), runs, chunk_requests=T).records
    for others in ({}, {"ttft_limit_s": 0.2, "tpot_limit_s": 0.05, "e2e_limit_s": 0.5}):
        levels = ServiceLimits(np.array(limits_s), **{k: np.full(4, v) for k, v in others.items()})
        qos = records.qos(levels, fleet.network_rtt_s)
        bound = [
            upper_bound(fleet, one, jax.tree.map(lambda x, i=i: jnp.float32(x[i]), levels), scheduler)
            for i, one in enumerate(requests)
        ]
        assert np.count_nonzero(qos) > 5
        assert np.all(qos <= np.stack(bound) + 1e-6)


def test_company_may_speed_a_request_up_under_chunked_prefill():
    """Why the bound asks for the scheduler: beside a prompt, a decoding request saves the decode base."""
    one = ReferenceProfile.from_fleet(profile(**CHEAP_PREFILL), 0)
    last_s = {}
    for scheduler in SHARED_MEMORY:
        alone = simulate_expert(one, [0.0], [10], [6], scheduler=scheduler)
        beside = simulate_expert(one, [0.0, 0.002, 0.004], [10, 2, 2], [6, 1, 1], scheduler=scheduler)
        last_s[scheduler] = (alone.outcomes[0].latency_s, beside.outcomes[0].latency_s)
    assert last_s["prefill_first"][0] < last_s["prefill_first"][1]
    assert last_s["chunked_prefill"][0] > last_s["chunked_prefill"][1]


def test_dropping_is_an_action_of_the_greedy_ones_only():
    names = ("impact_greedy", "projected_greedy", "clairvoyant_greedy", "shortest_queue", "best_quality")
    chosen = [policy(name) for name in names]
    _, _, routed = episodes("prefill_first", chosen, allow_drop=True)
    dropped = dict(zip(names, routed.dropped.sum(axis=(1, 2)), strict=True))
    assert dropped["shortest_queue"] == dropped["best_quality"] == 0
    assert dropped["clairvoyant_greedy"] + dropped["projected_greedy"] > 0


def test_upper_bound_by_hand():
    """Alone: prefill 2^-6 + p 2^-12 + p^2 2^-20; decodes 2^-6 + 2^-10 + 2^-16 ctx; round trip 2^-7."""
    requests = table(0, 1)
    requests.prompt_tokens[:] = 16
    requests.output_tokens[:] = [[4, 4, 200]]
    requests.quality[:] = [[0.25, 0.5, 1.0]]
    alone_s = 2**-6 + 16 * 2**-12 + 256 * 2**-20 + 3 * (2**-6 + 2**-10) + 2**-16 * (17 + 18 + 19) + 2**-7
    other_s = 2**-5 + 16 * 2**-11 + 3 * (2**-5 + 2**-11) + 2**-17 * (17 + 18 + 19)
    assert other_s > alone_s
    for limit_s, best in (
        (alone_s / 4 * 0.999, 0.0),
        (alone_s / 4 * 1.001, 0.25),
        (other_s / 4 * 1.001, 0.5),
    ):
        # The best of all, on expert 2, never fits its memory.
        np.testing.assert_allclose(upper_bound(profile(), requests, jnp.float32(limit_s)), [best])


def test_the_bound_counts_an_answer_as_the_context_limit_cuts_it():
    requests = table(0, 1)
    requests.prompt_tokens[:] = 16
    requests.output_tokens[:] = [[40, 40, 40]]
    requests.quality[:] = [[0.25, 0.5, 1.0]]
    fleet = profile(kv_capacity_tokens=[80, 51, 64])  # 20, 17 and 16 tokens a slot
    decode_s = 3 * (2**-6 + 2**-10) + 2**-16 * (17 + 18 + 19)
    cut_to_4_s = (2**-6 + 16 * 2**-12 + 256 * 2**-20 + decode_s + 2**-7) / 4
    cut_to_1_s = 2**-5 + 16 * 2**-11
    # The best of all refuses the prompt; the second, cut to one token, takes longest per token.
    for limit_s, best in ((cut_to_4_s * 0.95, 0.0), (cut_to_4_s * 1.001, 0.25), (cut_to_1_s * 1.001, 0.5)):
        np.testing.assert_allclose(upper_bound(fleet, requests, jnp.float32(limit_s), "llama_cpp"), [best])


@pytest.mark.parametrize("allow_drop", [False, True])
def test_a_policy_is_a_router_or_an_oracle(allow_drop):
    for name in HEURISTICS:
        assert not policy(name, allow_drop=allow_drop).is_oracle
    for name in ORACLES:
        chosen = policy(name, allow_drop=allow_drop)
        assert chosen.is_oracle
        assert chosen.router is None
    for router, oracle in ((None, None), (len, len)):
        with pytest.raises(ValueError, match="either router or oracle"):
            Policy("both", "", router=router, oracle=oracle)


def test_each_has_a_summary_and_one_act_function():
    for name in (*HEURISTICS, *ORACLES):
        assert policy(name).summary.endswith(".")
        # The same object each time, so that as a static argument it does not recompile.
        assert policy(name).act_function() is policy(name).act_function()


def test_unknown_names_get_a_hint():
    with pytest.raises(InputError, match=r"'shortest_que' is unknown \(did you mean 'shortest_queue'\?\)"):
        policy("shortest_que")
    with pytest.raises(InputError, match="'zzz' is unknown; use one of random, round_robin"):
        policy("zzz")


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_no_policy_and_says_so(name):
    with pytest.raises(InputError) as error:
        policy(name)
    assert "unknown" not in str(error.value)
    assert f"did you mean {name!r}" not in str(error.value)


def test_assigned_needs_an_assignment():
    with pytest.raises(InputError, match="no assignment to replay"):
        policy("assigned")


@pytest.mark.parametrize("scheduler", SHARED_MEMORY)
def test_assigned_replays_and_drops(scheduler):
    given = np.arange(T) % (EXPERTS + 1) - 1  # -1 drops
    action, _, routed = episodes(scheduler, [policy("assigned", assignment=jnp.asarray(given))])
    np.testing.assert_array_equal(action[0], np.tile(given, (SEEDS, 1)))
    np.testing.assert_array_equal(routed.dropped[0], np.tile(given < 0, (SEEDS, 1)))


def test_groups_resolve_to_their_members_once():
    chosen = resolve(["projected_greedy", "all"], ["runs/a", "b=runs/a"])
    assert chosen.names == ("projected_greedy", *(n for n in GROUPS["all"] if n != "projected_greedy"))
    assert chosen.bounds == BOUNDS
    assert chosen.routers == (*(n for n in chosen.names if n not in BOUNDS), "a", "b")
    both = tuple(name for name in GROUPS["all"] if name not in BOUNDS)
    assert resolve(["all"], with_bounds=False).names == both
    assert set(resolve(["all"]).names) - set(resolve(["all"], with_measuring=False).names) == {
        "measured_greedy"
    }


def test_groups_hold_routers_that_drop_and_that_never_do():
    names = [name + NEVER_DROPS for name in ("projected_greedy", "load_aware_greedy")]
    assert set(names) < set(resolve(["heuristics"]).names)
    assert resolve(["heuristics"], allow_drop=False).names == HEURISTICS  # the rows would be there twice
    for name in NEVER_DROPPING:
        never, alike = policy(name), policy(name.removesuffix(NEVER_DROPS), allow_drop=False)
        assert never.name == name
        assert never.act_function() is alike.act_function()
        assert never.params == alike.params
        assert alike.params != policy(alike.name).params
    with pytest.raises(InputError, match="'random@never_drops' is unknown"):
        policy("random@never_drops")


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (["heuristic"], {}, r"'heuristic' is unknown"),
        ([], {}, "names no policy that routes"),
        (["upper_bound"], {}, "names no policy that routes"),
        (["upper_bound"], {"with_bounds": False}, "routes nothing"),
        (["random"], {"stochastic": True}, "only learned routers draw; give --checkpoint=DIR"),
        (["random"], {"checkpoint": ["all=runs/a"]}, "'all' is the name of another policy"),
        (["assigned"], {}, "no assignment to replay"),
    ],
)
def test_what_resolves_to_nothing_is_refused(names, more, message):
    with pytest.raises(InputError, match=message):
        resolve(names, **more)
