"""Configurations survive JSON, and two of them are told apart field by field."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos_jax.runs.config_json import config_dict, config_differences, config_from_dict


@dataclasses.dataclass(frozen=True)
class Encoder:
    hidden: int = 64
    kinds: tuple[str, ...] = ("arrived", "expert")


@dataclasses.dataclass(frozen=True)
class Run:
    encoder: Encoder = Encoder()
    critic: Encoder | None = None
    rates: tuple[tuple[float, float], ...] = ()
    limit_s: float = math.inf
    residual: bool = True
    name: str | None = None

    def __post_init__(self):
        if self.name == "":
            raise ValueError("name is empty")


ENCODERS = st.builds(Encoder, st.integers(1, 512), st.lists(st.text(max_size=5)).map(tuple))
RUNS = st.builds(
    Run,
    ENCODERS,
    st.none() | ENCODERS,
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=2).map(tuple),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none() | st.text(min_size=1, max_size=5),
)


@given(RUNS)
def test_a_configuration_survives_json(run):
    stored = json.loads(json.dumps(config_dict(run), allow_nan=False))
    assert config_from_dict(Run, stored) == run
    assert config_differences(stored, config_dict(run)) == []


@given(RUNS, RUNS)
def test_two_configurations_differ_in_a_field_exactly_if_they_are_not_equal(one, other):
    differences = config_differences(config_dict(one), config_dict(other))
    assert (differences == []) == (one == other)


def test_differences_are_named_from_the_top():
    stored = config_dict({"network": Run(), "seed": 1, "old": 2})
    wanted = config_dict({"network": Run(encoder=Encoder(hidden=32), residual=False), "seed": True, "new": 3})
    assert config_differences(stored, wanted) == [
        "network.encoder.hidden: 64 in the checkpoint, 32 asked for",
        "network.residual: True in the checkpoint, False asked for",
        "new: nothing in the checkpoint, 3 asked for",
        "old: 2 in the checkpoint, nothing asked for",
        "seed: 1 in the checkpoint, True asked for",
    ]


def test_a_field_added_since_takes_its_default():
    assert config_from_dict(Run, {"encoder": {"hidden": 8}}) == Run(encoder=Encoder(hidden=8))


@pytest.mark.parametrize(
    ("stored", "fault"),
    [
        (None, "Run is not a group of fields"),
        ({"encoder": 3}, "Encoder is not a group of fields"),
        ({"encoder": {"heads": 8}}, "Encoder has no field 'heads'"),
        ({"name": ""}, "name is empty"),
    ],
)
def test_what_does_not_fit_is_refused(stored, fault):
    with pytest.raises(ValueError, match=fault):
        config_from_dict(Run, stored)


def test_a_function_is_no_setting():
    assert config_dict({"rate": np.float32(0.5), "n": np.int64(3)}) == {"rate": 0.5, "n": 3}
    with pytest.raises(ValueError, match="cannot hold a builtin_function_or_method"):
        config_dict({"make": len})
