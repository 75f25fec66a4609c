"""Tables as text: golden, grouped by what routers know, columns where they say something."""

import pytest

from qos_jax.evaluation.comparison import notes
from qos_jax.evaluation.comparison_table import comparison_table
from qos_jax.evaluation.comparison_text import render_text
from tests.evaluation.policy_results import result, three_policies, with_several_runs

TEXT = """\
poisson, 5 requests/s, L = 0.05 s/token, 4 seeds
-----------  --------  --------------------  -----------------------  ----  ----
policy       knows     average QoS           difference to            in L   QoS
                       [95% CI]              round_robin [95% CI]        %   /kJ
-----------  --------  --------------------  -----------------------  ----  ----
greedy       profiles  0.625 [0.531, 0.719]  +0.125 [+0.031, +0.219]  87.5     -
worst        profiles  0.250 [0.250, 0.250]  -0.250 [-0.250, -0.250]  50.0  0.50
round_robin  nothing   0.500 [0.500, 0.500]  -                        75.0  1.25
-----------  --------  --------------------  -----------------------  ----  ----"""


def test_text_is_aligned_and_grouped_by_knowledge_the_best_first():
    assert render_text(comparison_table(three_policies(), baseline="round_robin", resamples=20_000)) == TEXT


def test_every_case_has_its_table_and_the_last_the_mean_of_all():
    results = three_policies()
    more = [result(each.policy, [0.1], rate=7.5) for each in results]
    text = render_text(comparison_table([*results, *more], baseline="worst"))
    assert text.count("L = 0.05") == 2  # no mean, whose seeds would be no pairs
    assert "poisson, 7.5 requests/s, L = 0.05 s/token, 1 seed\n" in text
    assert "0.100 [-, -]" in text
    more = [result(each.policy, [0.1] * 4, rate=7.5) for each in results]
    *_, last = render_text(comparison_table([*results, *more], baseline="worst")).split("\n\n")
    assert last.startswith("mean of 2 cases, L = 0.05 s/token, 4 seeds\n")
    assert "round_robin  nothing   0.300 [0.300, 0.300]  +0.125 [+0.125, +0.125]" in last


@pytest.mark.parametrize(
    ("metric", "heading"), [("rejected_too_long_share", "too long"), ("failed_share", "fail")]
)
def test_rare_ends_have_a_column_where_there_are_any(metric, heading):
    for share, shown in ((0.125, True), (0.0, False)):
        greedy = result("greedy", [0.5], rejected_share=0.25, **{metric: share})
        text = render_text(comparison_table([greedy], baseline="greedy"))
        assert (heading in text and "12.5" in text) is shown
        assert "reject" in text


@pytest.mark.parametrize(
    ("scheduler", "share", "noted"),
    [("llama_cpp", 0.25, True), ("llama_cpp", 0.0, False), ("chunked_prefill", 0.25, False)],
)
def test_a_full_queue_is_noted_where_the_real_one_has_no_end(scheduler, share, noted):
    table = comparison_table([result("greedy", [0.5], rejected_share=share)], baseline="greedy")
    assert any("raise max_waiting" in note for note in notes(scheduler, table)) is noted


def test_training_runs_of_a_router_have_one_line():
    text = render_text(comparison_table(with_several_runs(), baseline="round_robin"))
    assert text.count("ours  ") == 1
    assert text.endswith("ours: interquartile mean of 4 training runs, 0.150 to 0.750")
    assert "#" not in text
