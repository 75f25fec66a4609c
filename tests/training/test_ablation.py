"""Variants of a training run: what each changes, and that all cost the same."""

import dataclasses

import pytest

from qos_jax.errors import InputError
from qos_jax.learning.ppo import PPOConfig
from qos_jax.policies.greedy_params import SEARCHED
from qos_jax.training.ablation import FULL, VARIANTS, trained_decisions, variants
from qos_jax.training.plan import load_plan
from qos_jax.training.presets import PRESETS

EDGE6 = PRESETS["edge6"]


def test_the_full_run_is_left_as_it_is():
    assert variants([FULL], EDGE6) == {FULL: EDGE6}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != FULL])
def test_a_variant_differs_and_takes_as_many_decisions_but_for_part_of_an_update(name):
    (variant,) = variants([name], EDGE6).values()
    assert variant != EDGE6
    plan = load_plan(variant)
    spent = sum(phase.updates * phase.learner.decisions_per_update for phase in plan.phases)
    assert spent == trained_decisions(variant)
    budget = trained_decisions(EDGE6)
    assert budget - max(phase.learner.decisions_per_update for phase in plan.phases) < spent <= budget


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("flat", "encoder", "flat"),
        ("sets", "encoder", "sets"),
        ("no_calibration", "calibrate_quality", False),
    ],
)
def test_a_network_variant_changes_one_choice(name, field, value):
    variant, distil = (variants([name], EDGE6)[name] for name in (name, "distil"))
    assert getattr(variant.network, field) == value
    changed = dataclasses.replace(distil.network, **{field: value})
    assert variant == dataclasses.replace(distil, network=changed)


def test_a_network_of_a_learned_impact_is_trained_as_the_full_run_trains_it():
    full = PRESETS["predictions"]
    for name in ("sets", "flat"):
        (variant,) = variants([name], full).values()
        network = dataclasses.replace(variant.network, encoder=full.network.encoder)
        assert variant.network.encoder == name
        assert dataclasses.replace(variant, network=network) == full
    (constants,) = variants(["constants"], full).values()
    assert "margin" not in constants.search.numbers
    with pytest.raises(InputError, match="which this run does not know"):
        variants(["no_residual"], full)


@pytest.mark.parametrize("name", ["ppo", "ppo_paper", "sac", "sac_paper"])
def test_an_agent_alone_learns_its_policy_from_the_reward_where_the_full_run_learns_an_impact(name):
    full = PRESETS["predictions"]
    (variant,) = variants([name], full).values()
    plan = load_plan(variant)
    assert [phase.name for phase in plan.phases] == [name.removesuffix("_paper")]
    assert full.network.learned_impact
    assert not variant.network.learned_impact
    if variant.agent == "ppo":
        assert variant.ppo.policy_weight == PPOConfig().policy_weight != full.ppo.policy_weight
    assert variant.reward == ("paper" if name.endswith("_paper") else "potential")
    (phase,) = plan.phases
    spent = phase.updates * phase.learner.decisions_per_update
    assert 0 <= trained_decisions(full) - spent < phase.learner.decisions_per_update
    evaluations = phase.updates // variant.evaluation.every
    assert evaluations == (full.ppo.total_updates + full.search.updates) // full.evaluation.every


def test_an_agent_alone_keeps_the_weights_of_a_policy_that_the_full_run_trains_and_starts_from_nothing():
    full = PRESETS["predictions"]
    ppo = dataclasses.replace(full.ppo, policy_weight=0.3, entropy_weight=0.002)
    (variant,) = variants(["ppo"], dataclasses.replace(full, ppo=ppo, start="runs/before")).values()
    assert (variant.ppo.policy_weight, variant.ppo.entropy_weight) == (0.3, 0.002)
    assert variant.start is None


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("distil", ["distil"]),
        ("no_residual", ["distil"]),
        ("ppo", ["ppo"]),
        ("full", ["search"]),
    ],
)
def test_a_variant_trains_what_its_name_says(name, phases):
    (variant,) = variants([name], EDGE6).values()
    assert [phase.name for phase in load_plan(variant).phases] == phases


def test_a_search_of_fewer_numbers_is_the_full_run_else():
    constants, loads = variants(["constants", "loads"], EDGE6).values()
    assert set(constants.search.numbers) < set(loads.search.numbers) < set(SEARCHED)
    assert "congestion_price" in constants.search.numbers
    assert {"price_by_load", "penalty_by_load"} < set(loads.search.numbers)
    for variant in (constants, loads):
        search = dataclasses.replace(variant.search, numbers=())
        assert dataclasses.replace(variant, search=search) == EDGE6


def test_an_agent_alone_is_evaluated_as_often():
    (variant,) = variants(["ppo"], EDGE6).values()
    ours, full = (config.evaluation.every for config in (variant, EDGE6))
    updates = EDGE6.search.updates + EDGE6.distil.updates
    assert variant.ppo.total_updates // ours == updates // full


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "is empty"),
        (["ppoo"], "did you mean 'ppo'"),
        (["ppo", "ppo"], "twice"),
    ],
)
def test_names_are_checked(names, told):
    with pytest.raises(InputError, match=told):
        variants(names, EDGE6)


def test_a_budget_of_less_than_one_update_is_refused():
    short = dataclasses.replace(
        EDGE6,
        search=dataclasses.replace(EDGE6.search, updates=0),
        distil=dataclasses.replace(EDGE6.distil, updates=1, num_envs=1, capacity=4),
    )
    with pytest.raises(InputError, match="less than one update of ppo"):
        variants(["ppo"], short)
