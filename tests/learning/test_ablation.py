"""Variants of a training run: what each changes, and that all cost the same."""

import dataclasses

import pytest

from qos_jax.errors import InputError
from qos_jax.learning.ablation import FULL, VARIANTS, trained_decisions, variants
from qos_jax.learning.plan import load_plan
from qos_jax.learning.presets import PRESETS

EDGE6 = PRESETS["edge6"]


def test_the_full_run_is_left_as_it_is():
    assert variants([FULL], EDGE6) == {FULL: EDGE6}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != FULL])
def test_a_variant_differs_and_takes_as_many_decisions_but_for_part_of_an_update(name):
    (variant,) = variants([name], EDGE6).values()
    assert variant != EDGE6
    plan = load_plan(variant)
    (phase,) = plan.phases
    spent = phase.updates * phase.learner.decisions_per_update
    assert spent == trained_decisions(variant)
    budget = trained_decisions(EDGE6)
    assert budget - phase.learner.decisions_per_update < spent <= budget


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("flat", "encoder", "flat"), ("sets", "encoder", "sets"), ("no_residual", "residual", False)],
)
def test_a_network_variant_changes_one_choice(name, field, value):
    (variant,) = variants([name], EDGE6).values()
    assert getattr(variant.network, field) == value
    assert variant == dataclasses.replace(EDGE6, network=dataclasses.replace(EDGE6.network, **{field: value}))


def test_without_distillation_a_run_is_evaluated_as_often():
    (variant,) = variants(["ppo"], EDGE6).values()
    ours, full = (config.evaluation.every for config in (variant, EDGE6))
    assert variant.ppo.total_updates // ours == EDGE6.distil.updates // full


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
        EDGE6, distil=dataclasses.replace(EDGE6.distil, updates=1, num_envs=1, capacity=4)
    )
    with pytest.raises(InputError, match="less than one update of ppo"):
        variants(["ppo"], short)
