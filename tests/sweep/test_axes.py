"""The axes of a sweep: what text means, what is refused, and every combination once."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos_jax.errors import InputError
from qos_jax.sweep.axes import SCALARS, Axis, check_axes, multiply_out, parse_axis


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("load=0.5", (0.5,)),
        ("load= 0.5, 1", (0.5, 1.0)),
        ("arrival_rate=2:20:10", tuple(np.linspace(2, 20, 10))),
        ("arrival_rate=20:2:4:linear", (20.0, 14.0, 8.0, 2.0)),
        ("latency_limit_s=0.01:1:3:log", (0.01, 0.1, 1.0)),
        ("profile.decode_base_s*=0.5:2:3:log", (0.5, 1.0, 2.0)),
        ("error_level=3:3:1", (3.0,)),
        ("profile.max_running=8,16", (8.0, 16.0)),
        ("ttft_limit_s=1,inf", (1.0, np.inf)),
    ],
)
def test_values_as_written(text, values):
    axis = parse_axis(text)
    assert axis.name == text.partition("=")[0]
    np.testing.assert_allclose(axis.values, values, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "expert", "field", "scale"),
    [
        ("load", None, None, False),
        ("profile.decode_base_s", None, "decode_base_s", False),
        ("profile.decode_base_s*", None, "decode_base_s", True),
        ("profile.A100.max_running", "A100", "max_running", False),
        ("profile.Llama-3.1-8B#2.network_rtt_s*", "Llama-3.1-8B#2", "network_rtt_s", True),
    ],
)
def test_what_a_name_is_about(name, expert, field, scale):
    axis = Axis(name, (1.0,))
    assert (axis.expert, axis.profile_field, axis.is_scale) == (expert, field, scale)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["load"], "not NAME=VALUES"),
        (["=1,2"], "not NAME=VALUES"),
        (["lod=1"], "did you mean 'load'"),
        (["latency_limit=1"], "did you mean 'latency_limit_s'"),
        (["load*=1"], "only a field of the profile is scaled"),
        (["profile.decode_bas_s=1"], "did you mean 'decode_base_s'"),
        (["profile.expert=1"], "no field 'expert'"),
        (["load="], "has no values"),
        (["load=1,,2"], "'' is not a number"),
        (["load=fast"], "'fast' is not a number"),
        (["load=1,nan"], "'nan' is not finite"),
        (["load=1,inf"], "'inf' is not finite"),
        (["ttft_limit_s=1:inf:3"], "'inf' is not finite"),
        (["ttft_limit_s=-inf"], "'-inf' is not finite"),
        (["load=1:2"], "is no range"),
        (["load=1:2:3:4"], "is no range"),
        (["load=1:2:2.5"], "'2.5' is not a whole number"),
        (["load=1:2:0"], "'0' is not a whole number from 1"),
        (["load=1:2:1"], "two ends and one value"),
        (["error_level=0:2:3:log"], "no logarithm"),
        (["load=0,1"], "0 is out of range"),
        (["diurnal_swing=1"], "from 0 to below 1"),
        (["quality_bias=-2"], "-2 is out of range"),
        (["profile.decode_base_s=0"], "above 0"),
        (["profile.decode_base_s*=-1"], "above 0"),
        (["profile.max_running=2.5"], "2.5 is not a whole number"),
        (["load=1,1.0"], "a value twice"),
        (["load=1", "load=2"], "swept twice"),
        (["load=1", "arrival_rate=2"], "contradicts arrival_rate"),
        (["profile.decode_base_s=1", "profile.decode_base_s*=2"], "contradicts"),
        (["profile.max_running=4", "profile.A100.max_running=2"], "contradicts 'profile.max_running'"),
        (["load=1:2:5000", "latency_limit_s=1:2:5000"], "25,000,000 cells"),
    ],
)
def test_refused(texts, says):
    with pytest.raises(InputError) as error:
        check_axes([parse_axis(text) for text in texts])
    assert says in str(error.value)
    assert "; " in str(error.value)


def test_two_experts_of_one_field_do_not_contradict():
    check_axes([parse_axis("profile.a.max_running=4,8"), parse_axis("profile.b.max_running=2")])


@given(st.lists(st.lists(st.floats(0.1, 9), min_size=1, max_size=4, unique=True), max_size=3))
def test_every_combination_once_the_last_axis_fastest(values):
    axes = [Axis(name, tuple(mine)) for name, mine in zip(SCALARS, values, strict=False)]
    points = multiply_out(axes)
    assert [tuple(point) for point in points.tolist()] == list(itertools.product(*values))
