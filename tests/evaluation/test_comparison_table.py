"""Tables: rows, CSV and JSON, training runs together, and errors that name what is missing."""

import dataclasses
import json

import pytest

from qos_jax.errors import InputError
from qos_jax.evaluation.comparison_table import (
    comparison_table,
    write_comparison_csv,
    write_comparison_json,
)
from qos_jax.evaluation.comparison_text import render_text
from tests.evaluation.policy_results import result, three_policies, with_several_runs


def test_training_runs_of_a_router_are_taken_together():
    """The middle half of the runs, over runs and seeds."""
    table = comparison_table(with_several_runs(), baseline="round_robin")
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


def test_a_router_of_several_runs_may_be_the_baseline(tmp_path):
    """Pairs by seed; it does not differ from itself, however its runs are drawn."""
    table = comparison_table(with_several_runs(), baseline="ours", metrics=["average_qos"])
    rows = {row.policy: row for row in table.rows}
    assert (rows["ours"].diff, rows["ours"].diff_low, rows["ours"].diff_high) == (0.0, 0.0, 0.0)
    assert rows["round_robin"].diff == pytest.approx(-0.1)
    assert rows["round_robin"].diff_low < -0.1 < rows["round_robin"].diff_high
    one = comparison_table(with_several_runs(), baseline="ours#2", metrics=["average_qos"])
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


def test_csv_is_tidy(tmp_path):
    comparison = comparison_table(three_policies(), baseline="round_robin", metrics=["qos_per_joule"])
    write_comparison_csv(tmp_path / "comparison.csv", comparison)
    assert (tmp_path / "comparison.csv").read_text() == CSV


def test_limits_that_are_set_have_columns_of_their_own(tmp_path):
    """Shares within each in the text, and the limit in the CSV; L alone reads "in L"."""
    shares = {"share_within_limit": 0.5, "share_within_ttft": 0.625, "share_within_tpot": 1.0}
    text = {}
    for name, limits in {"plain": {}, "ttft": {"ttft_limit_s": 2.0}}.items():
        greedy = dataclasses.replace(result("greedy", [0.5], **shares), **limits)
        table = comparison_table([greedy], baseline="greedy")
        text[name] = render_text(table)
        write_comparison_csv(tmp_path / f"{name}.csv", table)
    assert "in L" in text["plain"]
    assert not any(word in text["plain"] for word in ("in all", "in TTFT", "TTFT <="))
    assert all(word in text["ttft"] for word in ("in all", "in TTFT", "62.5", "TTFT <= 2 s"))
    assert "in TPOT" not in text["ttft"]
    header, row, *_ = (tmp_path / "ttft.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["ttft_limit_s"] == "2.0"
    assert "ttft_limit_s" not in (tmp_path / "plain.csv").read_text()


def test_json_holds_the_same_and_no_nan(tmp_path):
    write_comparison_json(
        tmp_path / "comparison.json", comparison_table(three_policies(), baseline="round_robin")
    )
    content = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert content["baseline"] == "round_robin"
    assert len(content["rows"]) == 9
    greedy = next(r for r in content["rows"] if (r["policy"], r["metric"]) == ("greedy", "average_qos"))
    assert (greedy["mean"], greedy["diff"], greedy["n"]) == (0.625, 0.125, 4)
    assert (
        next(r for r in content["rows"] if r["policy"] == "greedy" and r["metric"] == "qos_per_joule")["mean"]
        is None
    )


def test_wrong_input_is_named():
    results = three_policies()
    with pytest.raises(InputError, match=r"'best' was not run on poisson.*choose one of round_robin, greedy"):
        comparison_table(three_policies(), baseline="best")
    with pytest.raises(InputError, match="'greedy' comes twice"):
        comparison_table([*results, results[1]], baseline="greedy")
    with pytest.raises(InputError, match="different numbers of seeds"):
        comparison_table([results[0], result("few", [0.5])], baseline="few", metrics=["average_qos"])
    assert comparison_table([], baseline="any").rows == ()


def test_several_cases_have_their_mean():
    """Seed by seed, so its interval is of means; of one case, or of other limits, there is none."""
    more = [result(policy, qos, rate=7.5) for policy, qos in (("a", [0.2, 0.4]), ("b", [0.5, 0.5]))]
    cases = [result("a", [0.6, 0.4]), result("b", [0.5, 0.1]), *more]
    rows = {row.policy: row for row in comparison_table(cases, baseline="a").over_cases}
    assert (rows["a"].mean, rows["a"].ci_low, rows["a"].ci_high) == (pytest.approx(0.4),) * 3
    assert rows["b"].diff == pytest.approx(0.0)
    assert (rows["b"].workload, rows["b"].n) == ("mean of 2 cases", 2)
    assert comparison_table(cases[:2], baseline="a").over_cases == ()
    strict = [dataclasses.replace(each, latency_limit_s=0.01) for each in more]
    assert comparison_table([*cases[:2], *strict], baseline="a").over_cases == ()
