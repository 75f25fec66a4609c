"""Profiles as files: a row that a fleet takes, a plot with both kinds of rows, settings that go together."""

import dataclasses

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.profiling.limit_hints import limit_hints
from qos_jax.profiling.profile_files import append_expert, fleet_of_one
from qos_jax.profiling.profile_plan import ProfileConfig, profile_row
from qos_jax.profiling.profile_report import Agreement, predicted_against_measured
from qos_jax.runs import plot_style
from qos_jax.workload import fleet_path, read_fleet, write_fleet
from tests.profiling.logs import LIMITS, requests

ROW = {
    "max_running": 8,
    "max_waiting": 9,
    "max_batched_tokens": 512,
    "kv_capacity_tokens": 4000,
    "prefill_base_s": 0.01,
    "prefill_per_token_s": 1e-4,
    "prefill_per_token_sq_s": 0.0,
    "decode_base_s": 0.02,
    "decode_per_seq_s": 1e-5,
    "decode_per_context_token_s": 1e-7,
    "network_rtt_s": 0.01,
    "busy_power_w": 300.0,
    "idle_power_w": 40.0,
}


def test_a_row_added_leaves_the_rest_as_it_is(tmp_path):
    path = tmp_path / "fleet.csv"
    before = fleet_path("edge6").read_text().rstrip("\n")  # a last line without its end
    path.write_text(before)
    append_expert(path, "mine, too", ROW, ["how it was fitted"])
    assert path.read_text().startswith(before + "\n# how it was fitted\n")
    fleet = read_fleet(path)
    assert fleet.names[-1] == "mine, too"
    assert fleet.num_experts == 7
    for name, value in ROW.items():
        assert getattr(fleet.profile, name)[-1] == pytest.approx(value, rel=1e-6)
    with pytest.raises(InputError, match=r"fleet.csv, field 'expert': 'mine, too' is there already; "):
        append_expert(path, "mine, too", ROW, [])
    assert read_fleet(path).num_experts == 7


def test_columns_keep_the_order_of_the_file(tmp_path):
    path = tmp_path / "fleet.csv"
    write_fleet(path, fleet_of_one("one", ROW), ["note"])
    header, row = path.read_text().splitlines()[1:]
    names, cells = header.split(","), row.split(",")
    path.write_text("\n".join([",".join(names[::-1]), ",".join(cells[::-1])]) + "\n")
    append_expert(path, "two", ROW | {"max_waiting": 7}, [])
    fleet = read_fleet(path)
    assert fleet.names == ("one", "two")
    np.testing.assert_array_equal(fleet.profile.max_waiting, [9, 7])


def test_a_context_limit_becomes_a_column_of_the_fleet(tmp_path):
    path = tmp_path / "fleet.csv"
    write_fleet(path, fleet_of_one("one", ROW))
    config = ProfileConfig("two", requests=("a.csv",), kv_capacity_tokens=4000, context_limit_tokens=1024)
    append_expert(path, "two", profile_row(config, 4000, ROW), [])
    np.testing.assert_array_equal(read_fleet(path).profile.context_limit_tokens, [2**31 - 1, 1024])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("max_running", 0),
        ("context_limit_tokens", 1),
        ("kv_capacity_tokens", 2**31),
        ("network_rtt_s", -1.0),
        ("busy_power_w", 30.0),
    ],
)
def test_a_row_that_no_fleet_takes(column, value):
    with pytest.raises(InputError, match=f"field '{column}'"):
        fleet_of_one("mine", ROW | {column: value})


def test_the_plot_tells_what_was_held_out(tmp_path):
    times = np.geomspace(0.01, 1.0, 50)
    figure = predicted_against_measured(
        {"ttft": Agreement(times * 1.05, times, times > 0.1), "tpot": Agreement(times, times, None)}
    )
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["fitted", "held out"]
    assert right.get_legend() is None
    assert left.get_xlabel() == "measured (ms)"
    assert left.get_xscale() == left.get_yscale() == "log"
    plot_style.save_figure(figure, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_source_and_only_one():
    config = ProfileConfig("mine", iterations="a.csv", kv_capacity_tokens=1000)
    with pytest.raises(InputError, match="iterations and requests are given"):
        dataclasses.replace(config, requests=("b.jsonl",))
    with pytest.raises(InputError, match="no source"):
        dataclasses.replace(config, iterations=None)


def test_hints_name_the_limit_that_a_log_contradicts():
    limits = dataclasses.replace(LIMITS, max_running=4)
    log = requests(60, rate_per_s=20.0, limits=limits)
    assert limit_hints([log], limits) == []
    (hint,) = limit_hints([log], dataclasses.replace(limits, max_running=256))
    assert "at most 4 requests decoded at once, though others waited" in hint
    assert "--max_running=4" in hint
    low, memory = limit_hints([log], dataclasses.replace(limits, max_running=2, kv_capacity_tokens=1000))
    assert "4 requests decoded at once, more than max_running: give --max_running=4" in low
    assert "--kv_capacity_tokens=" in memory


def test_what_goes_only_with_request_logs():
    config = ProfileConfig("mine", requests=("a.csv",), kv_capacity_tokens=1000)
    with pytest.raises(InputError, match="field 'ttft_limit_s': no log is predicted"):
        dataclasses.replace(config, ttft_limit_s=1.0)
    with pytest.raises(InputError, match="field 'predict': there is no request log to fit"):
        ProfileConfig("mine", iterations="a.csv", predict=("b.csv",), kv_capacity_tokens=1000)
