"""Conversations with prefix caches in a sweep: a cell as a comparison runs it, and what is refused."""

import dataclasses

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.policies import policy
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.simulation.cases import build_cases
from qos_jax.simulation.metrics import metric_names
from qos_jax.simulation.policy_runs import compare
from qos_jax.sweep.axes import parse_axis
from qos_jax.sweep.grid import build_grid
from qos_jax.sweep.lane import LaneConfig
from qos_jax.sweep.plan import SweepConfig, load_sweep
from qos_jax.sweep.program import LaneProgram, plan_chunks
from qos_jax.workload.setting import open_setting
from tests.sweep.test_program import MESH, figures, fleet  # noqa: F401

SEEDS, REQUESTS, LOADS, KV_TOKENS, ENTRIES = 2, 48, (0.3, 1.2), (2500, 9000), 8
CONVERSATIONS = CaseConfig(
    workloads=("conversation",),
    loads=LOADS,
    seeds=SEEDS,
    num_requests=REQUESTS,
    seed=5,
    open_conversations=6,
    conversation_limit_tokens=1500,
    system_prompts=2,
    system_prompt_tokens=100,
    replicas=True,
)


def test_a_cell_is_a_case_of_a_comparison_with_its_caches(fleet, figures):  # noqa: F811
    axes = [
        parse_axis(f"{name}={','.join(map(str, values))}")
        for name, values in (
            ("load", LOADS),
            ("profile.kv_capacity_tokens", KV_TOKENS),
            ("error_level", (0.5,)),
        )
    ]
    swept = dataclasses.replace(open_setting("edge6", latency_limit_s=0.1), fleet=fleet, figures=figures)
    grid = build_grid([swept], axes, "chunked_prefill", CONVERSATIONS, None, ENTRIES)
    (group,) = grid.groups
    assert group.serving.prefix_levels == 2
    assert np.all(group.numbers.known.length_log_std == group.numbers.known.length_log_std[:, :1])
    lane = LaneConfig(group.serving, "conversation", REQUESTS, SEEDS, replicas=True)
    cut = plan_chunks(lane, group, MESH, 1e9, cell_requests=SEEDS * REQUESTS)
    metrics = LaneProgram(lane, policy("prefix_load"), group, cut, MESH, 5).run(np.arange(4))
    metrics = metrics[np.argsort(group.cell)].reshape(2, 2, SEEDS, -1)  # by load and capacity
    names = metric_names(ENTRIES)
    draws = dataclasses.replace(CONVERSATIONS, error_level=0.5)
    for number, tokens in enumerate(KV_TOKENS):
        held = dataclasses.replace(fleet.profile, kv_capacity_tokens=np.full(2, tokens, np.int32))
        cases = build_cases(draws, dataclasses.replace(fleet, profile=held), figures, 0.1)
        compared = compare(group.serving, [policy("prefix_load")], cases, workers=1)
        for load, result in enumerate(compared.results):
            assert grid.arrival_rate_per_s[2 * load + number] == pytest.approx(result.arrival_rate_per_s)
            assert result.metrics.keys() == set(names)
            for index, name in enumerate(names):
                np.testing.assert_allclose(
                    metrics[load, number, :, index],
                    result.metrics[name],
                    rtol=2e-4,
                    atol=1e-6,
                    err_msg=f"{name} at {tokens} tokens",
                )
    hit_rate = metrics[..., names.index("hit_rate")]
    assert hit_rate[:, 0].mean() < hit_rate[:, 1].mean()  # more memory holds more
    assert hit_rate.min() > 0


def test_without_caches_conversations_share_nothing(fleet, figures):  # noqa: F811
    swept = dataclasses.replace(open_setting("edge6", latency_limit_s=0.1), fleet=fleet, figures=figures)
    (group,) = build_grid([swept], [], "prefill_first", CONVERSATIONS).groups
    talk = group.source.conversations
    assert (talk.prefix_group, talk.prefix_tokens, talk.prefix_path) == (None, None, None)
    (case, _) = build_cases(CONVERSATIONS, fleet, figures, 0.1)
    np.testing.assert_array_equal(talk.prompt_tokens[0], case.runs.requests.prompt_tokens)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prefix_entries": 8}, "is read by workload 'conversation' alone; give --workload=conversation"),
        ({"system_prompts": 2}, "is read by workload 'conversation' alone"),
        ({"workload": "sessions"}, "'workload': the turns of sessions wait for answers.*launch.evaluate"),
        ({"sweep": ("conversation_turns=2,4",)}, "the same in all cells; give --conversation_turns=VALUE"),
        ({"plot_metrics": ("hit_rate",)}, "'plot_metrics'.*'hit_rate'.*give --prefix_entries"),
        ({"capacity": "load", "target": "hit_rate>=0.5"}, "'target'.*'hit_rate'.*give --prefix_entries"),
        (
            {"workload": "conversation", "conversation_turns": 0.5},
            "'conversation_turns': 0.5 is out of range",
        ),
    ],
    ids=str,
)
def test_refused(given, says):
    with pytest.raises(InputError, match=says):
        load_sweep(SweepConfig(**given))
