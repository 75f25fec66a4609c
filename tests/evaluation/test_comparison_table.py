"""Tables: golden text, CSV and JSON, and errors that name what is missing."""

import dataclasses
import json

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.evaluation.comparison import notes
from qos_jax.evaluation.comparison_table import (
    comparison_table,
    render_text,
    write_comparison_csv,
    write_comparison_json,
)
from qos_jax.simulation.policy_runs import PolicyResult


def _result(
    policy: str, qos: list[float], rate: float = 5.0, knows: str = "profiles", **metrics: float
) -> PolicyResult:
    values = {name: np.full(len(qos), value) for name, value in metrics.items()}
    held = {"average_qos": np.array(qos), **values}
    return PolicyResult(policy, "poisson", rate, 0.05, held, knows=knows)


@pytest.fixture
def results() -> list[PolicyResult]:
    return [
        _result("round_robin", [0.5] * 4, knows="nothing", share_within_limit=0.75, qos_per_joule=0.00125),
        _result("greedy", [0.625, 0.75, 0.625, 0.5], share_within_limit=0.875, qos_per_joule=np.nan),
        _result("worst", [0.25, 0.25, 0.25, 0.25], share_within_limit=0.5, qos_per_joule=0.0005),
    ]


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


def test_text_is_aligned_and_grouped_by_knowledge_the_best_first(results):
    assert render_text(comparison_table(results, baseline="round_robin", resamples=20_000)) == TEXT


def test_every_case_has_its_table(results):
    more = [_result(r.policy, [0.1], rate=7.5) for r in results]
    text = render_text(comparison_table([*results, *more], baseline="worst"))
    assert text.count("L = 0.05") == 2
    assert "poisson, 7.5 requests/s, L = 0.05 s/token, 1 seed\n" in text
    assert "0.100 [-, -]" in text


@pytest.mark.parametrize(
    ("metric", "heading"), [("rejected_too_long_share", "too long"), ("failed_share", "fail")]
)
def test_rare_ends_have_a_column_where_there_are_any(metric, heading):
    for share, shown in ((0.125, True), (0.0, False)):
        result = _result("greedy", [0.5], rejected_share=0.25, **{metric: share})
        text = render_text(comparison_table([result], baseline="greedy"))
        assert (heading in text and "12.5" in text) is shown
        assert "reject" in text


@pytest.mark.parametrize(
    ("scheduler", "share", "noted"),
    [("llama_cpp", 0.25, True), ("llama_cpp", 0.0, False), ("chunked_prefill", 0.25, False)],
)
def test_a_full_queue_is_noted_where_the_real_one_has_no_end(scheduler, share, noted):
    table = comparison_table([_result("greedy", [0.5], rejected_share=share)], baseline="greedy")
    assert any("raise max_waiting" in note for note in notes(scheduler, table)) is noted


@pytest.fixture
def several_runs(results) -> list[PolicyResult]:
    """Four training runs of one router beside policies that have none."""
    qos = ([0.5, 0.6, 0.5, 0.6], [0.7, 0.8, 0.7, 0.8], [0.6, 0.7, 0.6, 0.7], [0.1, 0.2, 0.1, 0.2])
    return [*results, *(_result(f"ours#{run}", list(of_run)) for run, of_run in enumerate(qos, start=1))]


def test_training_runs_of_a_router_are_taken_together(several_runs):
    """The middle half of the runs, over runs and seeds; the runs apart in the rows, not in the text."""
    table = comparison_table(several_runs, baseline="round_robin")
    rows = {row.policy: row for row in table.rows if row.metric == "average_qos"}
    ours = rows["ours"]
    assert ours.mean == pytest.approx((0.55 + 0.65) / 2)
    assert ours.diff == pytest.approx(ours.mean - 0.5)
    assert (ours.runs, ours.n) == (4, 4)
    assert (ours.least, ours.most) == (pytest.approx(0.15), pytest.approx(0.75))
    assert ours.ci_low < ours.mean < ours.ci_high
    assert rows["ours#4"].mean == pytest.approx(0.15)
    assert rows["ours#4"].runs is rows["greedy"].runs is None
    names = [row.policy for row in table.rows]
    assert names.index("ours") < names.index("ours#1")
    text = render_text(table)
    assert text.endswith("ours: interquartile mean of 4 training runs, 0.150 to 0.750")
    assert "#" not in text


def test_a_router_of_several_runs_may_be_the_baseline(several_runs, tmp_path):
    """Pairs by seed; it does not differ from itself, however its runs are drawn."""
    table = comparison_table(several_runs, baseline="ours", metrics=["average_qos"])
    rows = {row.policy: row for row in table.rows}
    assert (rows["ours"].diff, rows["ours"].diff_low, rows["ours"].diff_high) == (0.0, 0.0, 0.0)
    assert rows["round_robin"].diff == pytest.approx(-0.1)
    assert rows["round_robin"].diff_low < -0.1 < rows["round_robin"].diff_high
    one = comparison_table(several_runs, baseline="ours#2", metrics=["average_qos"])
    assert next(row.diff for row in one.rows if row.policy == "ours#3") == pytest.approx(-0.1)
    write_comparison_csv(tmp_path / "runs.csv", table)
    header, *lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert header.endswith("knows,runs,least,most,unit,baseline")
    assert [line.split(",")[-5:-2] for line in lines if line.startswith("greedy,")] == [["", "", ""]]


CSV = """\
policy,workload,arrival_rate_per_s,latency_limit_s,metric,mean,ci_low,ci_high,diff,diff_low,diff_high,n,knows,unit,baseline
round_robin,poisson,5.0,0.05,qos_per_joule,0.00125,0.00125,0.00125,0.0,0.0,0.0,4,nothing,1/J,round_robin
greedy,poisson,5.0,0.05,qos_per_joule,,,,,,,4,profiles,1/J,round_robin
worst,poisson,5.0,0.05,qos_per_joule,0.0005,0.0005,0.0005,-0.00075,-0.00075,-0.00075,4,profiles,1/J,round_robin
"""


def test_csv_is_tidy(results, tmp_path):
    comparison = comparison_table(results, baseline="round_robin", metrics=["qos_per_joule"])
    write_comparison_csv(tmp_path / "comparison.csv", comparison)
    assert (tmp_path / "comparison.csv").read_text() == CSV


def test_limits_that_are_set_have_columns_of_their_own(tmp_path):
    """Shares within each in the text, and the limit in the CSV; L alone reads "in L"."""
    shares = {"share_within_limit": 0.5, "share_within_ttft": 0.625, "share_within_tpot": 1.0}
    text = {}
    for name, limits in {"plain": {}, "ttft": {"ttft_limit_s": 2.0}}.items():
        result = dataclasses.replace(_result("greedy", [0.5], **shares), **limits)
        table = comparison_table([result], baseline="greedy")
        text[name] = render_text(table)
        write_comparison_csv(tmp_path / f"{name}.csv", table)
    assert "in L" in text["plain"]
    assert not any(word in text["plain"] for word in ("in all", "in TTFT", "TTFT <="))
    assert all(word in text["ttft"] for word in ("in all", "in TTFT", "62.5", "TTFT <= 2 s"))
    assert "in TPOT" not in text["ttft"]
    header, row, *_ = (tmp_path / "ttft.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["ttft_limit_s"] == "2.0"
    assert "ttft_limit_s" not in (tmp_path / "plain.csv").read_text()


def test_json_holds_the_same_and_no_nan(results, tmp_path):
    write_comparison_json(tmp_path / "comparison.json", comparison_table(results, baseline="round_robin"))
    content = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert content["baseline"] == "round_robin"
    assert len(content["rows"]) == 9
    greedy = next(r for r in content["rows"] if (r["policy"], r["metric"]) == ("greedy", "average_qos"))
    assert (greedy["mean"], greedy["diff"], greedy["n"]) == (0.625, 0.125, 4)
    assert (
        next(r for r in content["rows"] if r["policy"] == "greedy" and r["metric"] == "qos_per_joule")["mean"]
        is None
    )


def test_wrong_input_is_named(results):
    with pytest.raises(InputError, match=r"'best' was not run on poisson.*choose one of round_robin, greedy"):
        comparison_table(results, baseline="best")
    with pytest.raises(InputError, match="'greedy' comes twice"):
        comparison_table([*results, results[1]], baseline="greedy")
    with pytest.raises(InputError, match="different numbers of seeds"):
        comparison_table([results[0], _result("few", [0.5])], baseline="few", metrics=["average_qos"])
    assert comparison_table([], baseline="any").rows == ()
