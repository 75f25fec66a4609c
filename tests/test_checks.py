"""Checks of settings: what passes, and one error with field, value and remedy for what does not."""

import dataclasses
import math

import pytest

from qos_jax.checks import (
    COUNT,
    SHARE,
    Interval,
    check_distinct,
    check_names,
    check_one_of,
    check_range,
    check_some_of,
)
from qos_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 1
    share: float | None = 0.5
    shares: tuple[float, ...] = (0, 1.0)


@pytest.mark.parametrize("value", [1, 2**31 - 1])
def test_within(value):
    check_range(Settings(count=value), ["count"], COUNT)
    check_range(Settings(share=None), ["share", "shares"], SHARE)


@pytest.mark.parametrize("value", [0, 2**31, 1.0, True, math.nan])
def test_out_of_range(value):
    with pytest.raises(InputError, match=r"^field 'count': .* is out of range; give a whole number from 1"):
        check_range(Settings(count=value), ["count"], COUNT)


def test_each_of_a_tuple():
    with pytest.raises(InputError, match=r"'shares': 1.5 is out of range; give a finite number from 0 to 1$"):
        check_range(Settings(shares=(0.5, 1.5)), ["shares"], SHARE)


def test_open_ends():
    half_open = Interval(0, 1, above=True, below=True)
    assert 0.5 in half_open
    assert 0 not in half_open
    assert 1 not in half_open
    assert math.inf not in Interval(0)
    assert str(half_open) == "a finite number above 0 to below 1"


def test_names():
    check_one_of("agent", "ppo", ("ppo", "sac"))
    check_some_of("agents", ("sac", "ppo"), ("ppo", "sac"))
    with pytest.raises(InputError, match=r"'agent': 'pp0' is unknown \(did you mean 'ppo'\?\); use one of"):
        check_one_of("agent", "pp0", ("ppo", "sac"))
    with pytest.raises(InputError, match=r"'agents': is empty; give some of ppo, sac"):
        check_some_of("agents", (), ("ppo", "sac"))
    with pytest.raises(InputError, match=r"'loads': 0.5 is given twice; give each once"):
        check_distinct("loads", (0.5, 1.0, 0.5))


def test_names_of_experts():
    check_names("experts", ("ant", "bee"), reserved="drop")
    for names, fault in (
        ((), "is no list of names"),
        ("ant", "is no list of names"),
        (("ant", " "), r"' ' at experts\[1\] is empty"),
        (("ant", 3), r"3 at experts\[1\] is empty"),
        (("b\nee",), r"experts\[0\] is not printable"),
        (("Drop",), r"'Drop' at experts\[0\] is reserved"),
        (("ant", "ant"), r"'ant' at experts\[1\] appears twice"),
    ):
        with pytest.raises(InputError, match=rf"mine.npz, field 'experts': .*{fault}.*; give"):
            check_names("experts", names, file="mine.npz", reserved="drop")
