"""The setting that every launcher opens: what is in it, and what is refused."""

import math

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.serving import ServiceLimits
from qos_jax.workload import fleet_path, read_fleet, take, write_fleet
from qos_jax.workload.limit_presets import LIMIT_PRESETS
from qos_jax.workload.setting import open_setting
from qos_jax.workload.trace import Trace


def test_a_shipped_fleet_brings_its_limit_and_figures():
    setting = open_setting("edge6", scheduler="chunked_prefill")
    assert setting.file == fleet_path("edge6")
    assert setting.latency_limit_s == 0.07
    assert setting.serving.num_experts == setting.fleet.num_experts == 6
    assert setting.serving.scheduler == "chunked_prefill"
    assert setting.source is setting.figures
    assert setting.figures.expert_names == setting.fleet.names
    assert not setting.source_is_drawn
    assert setting.table is setting.rows is setting.trace is None


def test_figures_of_unknown_models_are_drawn_by_the_seed(tmp_path):
    shipped = read_fleet(fleet_path("edge6"))
    file = tmp_path / "mine.csv"
    write_fleet(file, type(shipped)(("a", "b"), take(shipped, [0, 1]).profile))
    one, same, other = (open_setting(str(file), latency_limit_s=0.05, seed=seed) for seed in (1, 1, 4))
    assert one.source_is_drawn
    np.testing.assert_array_equal(one.figures.quality_threshold, same.figures.quality_threshold)
    assert np.any(one.figures.quality_threshold != other.figures.quality_threshold)


def test_a_trace_is_cut_to_its_window(tmp_path):
    file = tmp_path / "trace.csv"
    rows = "".join(f"{t}.0,10,5\n" for t in range(10))
    file.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    trace = open_setting("edge6", trace=str(file), trace_start_s=2.0, trace_end_s=5.0).trace
    assert isinstance(trace, Trace)
    assert (trace.num_requests, trace.name) == (3, str(file))


def test_limits_come_from_flags_then_the_preset_then_the_fleet():
    """MLPerf's for Llama2-70b is 2000 ms and 200 ms; it has no limit per token of the whole latency."""
    assert open_setting("edge6", ttft_limit_s=1.0).limits == ServiceLimits(0.07, ttft_limit_s=1.0)
    preset = open_setting("edge6", limits="mlperf_llama2_70b").limits
    assert preset == ServiceLimits(math.inf, ttft_limit_s=2.0, tpot_limit_s=0.2)
    mixed = open_setting("edge6", limits="mlperf_llama2_70b", latency_limit_s=0.05, tpot_limit_s=0.1).limits
    assert mixed == ServiceLimits(0.05, ttft_limit_s=2.0, tpot_limit_s=0.1)
    without = open_setting("edge6", limits="mlperf_llama2_70b", latency_limit_s=0.05, ttft_limit_s=math.inf)
    assert without.limits == ServiceLimits(0.05, tpot_limit_s=0.2)
    for name, known in LIMIT_PRESETS.items():
        assert 0 < known.tpot_limit_s < 1, name
        assert 0 < known.ttft_limit_s < 60, name
        assert known.source, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table_split": "test"}, r"field 'table_split': 'test' needs a table; give --table=FILE"),
        ({"table_split": "tset"}, r"field 'table_split': 'tset' is unknown \(did you mean 'test'\?\)"),
        ({"scheduler": "prefil_first"}, r"did you mean 'prefill_first'\?"),
        ({"latency_limit_s": 0.0}, r"field 'latency_limit_s': 0\.0 is not a positive, finite time"),
        ({"latency_limit_s": 1e-60}, "is not a positive, finite time"),
        ({"tpot_limit_s": -0.1}, r"field 'tpot_limit_s': -0\.1 is not a positive"),
        ({"limits": "mlperf_llama2_7b"}, r"did you mean 'mlperf_llama2_70b'"),
        ({"table": ""}, r"field 'table': is empty"),
        ({"trace": "t.csv", "trace_start_s": 3.0, "trace_end_s": 3.0}, "is no window"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        open_setting("edge6", **changes)
