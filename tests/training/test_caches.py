"""Training with prefix caches: what must agree, and that networks take what caches show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.policies.learned import learned_router, parameter_shapes
from qos_jax.routing.observation import SeenPrefixes
from qos_jax.training.judge import judged_cases
from qos_jax.training.plan import load_plan
from qos_jax.training.train_config import EvaluationConfig
from qos_jax.training.world_ranges import WorldRanges
from tests.routing.seen import EXPERTS, SLOTS, observation
from tests.training.test_plan import CONFIG

CACHED = dataclasses.replace(
    CONFIG,
    prefix_entries=4,
    scheduler="chunked_prefill",
    network=dataclasses.replace(CONFIG.network, sees_caches=True),
    scenario=dataclasses.replace(
        CONFIG.scenario, table_rows=12, open_conversations=3, conversation_limit_tokens=900
    ),
)


def test_a_network_sees_caches_where_there_are_some():
    with pytest.raises(InputError, match=r"network\.sees_caches.*give prefix_entries"):
        dataclasses.replace(CACHED, prefix_entries=0)
    with pytest.raises(InputError, match=r"set network\.sees_caches=true"):
        dataclasses.replace(CACHED, network=CONFIG.network)
    with pytest.raises(InputError, match="prefix_entries"):
        dataclasses.replace(CONFIG, prefix_entries=-1)
    with pytest.raises(InputError, match=r"sees_caches.*profiles"):
        dataclasses.replace(CACHED.network, information="predictions", residual=False)


def test_networks_take_what_caches_show_also_where_routers_act_on_beliefs():
    config = dataclasses.replace(
        CACHED,
        world=WorldRanges(view="twin", routers=2, scrape_period_s=(1.0, 5.0)),
        network=dataclasses.replace(CACHED.network, believes=True),
        distil=dataclasses.replace(CACHED.distil, updates=0),
    )
    plan = load_plan(config)
    serving = plan.setting.serving
    assert serving.prefix_entries == 4
    shapes = parameter_shapes(config.network, serving.num_experts, serving.slots)
    plain = dataclasses.replace(config.network, sees_caches=False)
    assert shapes != parameter_shapes(plain, serving.num_experts, serving.slots)
    search, ppo = (phase.learner for phase in plan.phases)
    assert jax.eval_shape(lambda key: search.params(search.init(key, None)), jax.random.key(0)) == shapes
    state = jax.eval_shape(lambda key: ppo.init(key, None), jax.random.key(0))
    assert jax.eval_shape(ppo.params, state) == shapes
    reached, _ = jax.eval_shape(ppo.update, state)
    kinds = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(reached)] == kinds


def test_routers_trained_with_caches_run_without_and_the_other_way_round():
    without = observation()
    slots = jnp.zeros_like(without.slot_prompt_tokens)
    found = SeenPrefixes(jnp.int32(0), jnp.array([0, 8], jnp.int32), slots)
    for network, seen in (
        (CONFIG.network, dataclasses.replace(without, prefix=found)),
        (CACHED.network, without),
    ):
        params = parameter_shapes(network, EXPERTS, SLOTS)
        action = jax.eval_shape(learned_router(network), params, jax.random.key(0), seen)
        assert action.shape == ()


def test_it_is_judged_on_conversations_as_episodes_are():
    cases = judged_cases(load_plan(CACHED), EvaluationConfig(workloads=("conversation",), loads=(0.5,)))
    (case,) = cases
    requests = case.runs.requests
    whole = requests.prompt_tokens + requests.output_tokens.max(-1)
    assert np.all(whole[requests.prefix_tokens > 0] <= CACHED.scenario.conversation_limit_tokens)
    assert (requests.prefix_tokens > 0).any()
