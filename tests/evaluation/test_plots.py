"""Plots: each is drawn and saved, its axes carry units, and policies stay apart."""

import dataclasses
import sys

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.evaluation import plots
from qos_jax.evaluation.comparison_table import ComparisonRow, comparison_table
from qos_jax.runs import plot_style
from qos_jax.simulation.policy_runs import PolicyResult

POLICIES = ("random", "round_robin", "shortest_queue", "least_work", "power_of_two", "best_quality")


@pytest.fixture
def rows() -> tuple[ComparisonRow, ...]:
    """Of the last policy two training runs."""
    rng = np.random.default_rng(0)
    results = [
        PolicyResult(policy, workload, rate, 0.05, {"average_qos": rng.random(seeds)})
        for policy in (*POLICIES, "ours#1", "ours#2")
        for workload, rates, seeds in (("poisson", (2.0, 5.0), 4), ("azure_conv", (5.5,), 1))
        for rate in rates
    ]
    return comparison_table(results, baseline="random").rows


def _save(figure, path):
    plot_style.save_figure(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_qos_vs_rate(rows, tmp_path):
    figure = plots.qos_vs_rate(rows)
    curves, points = figure.axes
    assert curves.get_xlabel() == "arrival rate (requests/s)"
    assert "5.5 requests/s" in points.get_xlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*POLICIES, "ours"]
    assert len(points.get_yticks()) == len(POLICIES) + 1
    _save(figure, tmp_path / "plots" / "qos_vs_rate.png")


def test_more_workloads_take_more_rows(rows):
    one = [row for row in rows if row.workload == "azure_conv"]
    many = [dataclasses.replace(row, workload=f"{row.workload}{i}") for row in one for i in range(4)]
    figure = plots.qos_vs_rate(many)
    assert len(figure.axes) == 6
    assert figure.get_figwidth() < 17


def test_latency_cdf(records, tmp_path):
    figure = plots.latency_cdf({"random": records, "mine": records}, 0.1)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "latency per token (ms)"
    curve = axes.get_lines()[0]
    assert curve.get_ydata()[-1] == pytest.approx(4 / 6)  # the share that completed
    assert list(axes.get_lines()[-1].get_xdata()) == [100, 100]  # the limit
    _save(figure, tmp_path / "plots" / "latency_cdf.png")


def test_latency_cdf_of_nothing(records):
    lost = records.__class__(**{**vars(records), "status": np.full(6, 1)})
    figure = plots.latency_cdf({"random": lost}, 0.1)
    assert "none completed" in figure.legends[0].get_texts()[0].get_text()


def test_expert_shares(records, tmp_path):
    figure = plots.expert_shares({"random": records}, ["a", "b"])
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    np.testing.assert_allclose(widths, [2 / 6, 2 / 6, 1 / 6, 1 / 6])
    _save(figure, tmp_path / "plots" / "expert_shares.png")


def test_timeline_draws_means_of_long_runs(tmp_path):
    samples = 1501
    load = np.arange(samples * 2, dtype=float).reshape(samples, 2)
    figure = plots.timeline(np.arange(samples), load, load, load / load.max(), ["a", "b"])
    line = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_ydata()[:2], [4.0, 14.0])  # means of 0, 2, .. 8 and of 10, 12, .. 18
    assert line.get_ydata()[-1] == load[-1, 0]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "running requests",
        "waiting requests",
        "KV cache used (%)",
    ]
    _save(figure, tmp_path / "plots" / "timeline.png")


def test_styles_are_distinct_and_stable():
    known = (*POLICIES, "quality_within_limit", "impact_greedy", "projected_greedy", "clairvoyant_greedy")
    names = [*known, *(f"mine{i}" for i in range(8))]
    styles = plot_style.policy_styles(names)
    assert len({(s.colour, str(s.dashes), s.marker) for s in styles.values()}) == len(names)
    assert plot_style.policy_styles(["least_work"])["least_work"] == styles["least_work"]
    assert len(set(plot_style.expert_styles([str(i) for i in range(16)]))) == 16


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'qos_jax\[plot\]'"):
        plot_style.new_figure(1, 1)
