"""``launch.config_flags``: a dataclass makes flags, and flags make a dataclass."""

from __future__ import annotations

import dataclasses

import pytest
from absl import flags

from launch.config_flags import define_config_flags, field_comments
from qos_jax.benchmark.benchmark import BenchmarkConfig
from qos_jax.errors import InputError
from qos_jax.evaluation.comparison import ComparisonConfig
from qos_jax.evaluation.run_config import SingleRunConfig
from qos_jax.options import check_options, option, option_of
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.sweep.plan import SweepConfig
from qos_jax.tables.preparation import PreparationConfig
from qos_jax.training.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Cases:
    seeds: int = 4  # draws
    kind: str = option("plain", known=("plain", "bursty"))  # of arrivals


@dataclasses.dataclass(frozen=True)
class Card:
    layers: int  # transformer layers
    share: float = 0.5  # of the peak


@dataclasses.dataclass(frozen=True)
class Config:
    name: str  # what it is called
    tags: tuple[str, ...] = option((), help="a tag, which may be long", repeatable=True)
    kinds: tuple[str, ...] = option(("plain",), known=("plain", "bursty"))
    pair: tuple[float, float] = (0.0, 1.0)  # two ends
    limit_s: float | None = None  # at most
    wish: bool | None = None  # or not
    cases: Cases = option(lambda: Cases(seeds=8), flat=True)
    other: Cases = option(Cases)
    card: Card | None = option(None, help="of a card", flat=True)


def parsed(*arguments):
    values = flags.FlagValues()
    defined = define_config_flags(Config, flag_values=values)
    values(["program", *arguments])
    return defined.read()


def test_what_is_not_given_has_its_default():
    assert parsed("--name=a") == Config("a")
    assert Config("a").cases.seeds == 8


def test_groups_lists_and_repeated_flags():
    given = parsed(
        *("--name=a", "--seeds=2", "--other.seeds=3", "--tags=x,y", "--tags=z", "--kinds=plain, bursty"),
        *("--pair=1, 2", "--limit_s=0.5", "--nowish"),
    )
    assert given == Config(
        "a",
        tags=("x,y", "z"),
        kinds=("plain", "bursty"),
        pair=(1.0, 2.0),
        limit_s=0.5,
        wish=False,
        cases=Cases(seeds=2),
        other=Cases(seeds=3),
    )
    assert parsed("--name=a", "--limit_s=none", "--kinds=").kinds == ()


def test_a_group_that_may_be_none_has_a_switch():
    assert parsed("--name=a", "--card", "--layers=3").card == Card(3)
    assert parsed("--name=a", "--nocard").card is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "field 'name': is missing; give --name, see --help"),
        (
            ("--name=a", "--kind=plan"),
            r"field 'kind': 'plan' is unknown \(did you mean 'plain'\?\); use one of",
        ),
        (("--name=a", "--kinds=plain,x"), "field 'kinds': 'x' is unknown"),
        (("--name=a", "--other.kind=x"), "other, field 'kind': 'x' is unknown"),
        (("--name=a", "--card"), "field 'layers': is missing; give --layers"),
        (("--name=a", "--layers=3"), "field 'layers': needs --card; give --card, or leave it out"),
    ],
)
def test_what_the_configuration_refuses(arguments, says):
    with pytest.raises(InputError, match=says):
        parsed(*arguments)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--seeds=2.5", "'2.5' is not a whole number"),
        ("--pair=1", "'1' is not 2 numbers, separated by commas"),
        ("--pair=1,x", "'x' is not a number"),
        ("--limit_s=soon", "'soon' is not a number, or none"),
        ("--cases.seeds=2", "cases.seeds"),
    ],
)
def test_what_does_not_fit_its_type(argument, says):
    with pytest.raises(flags.Error, match=says):
        parsed("--name=a", argument)


def test_help_is_the_comment_or_the_options_and_the_default():
    values = flags.FlagValues()
    define_config_flags(Config, leave_out=("pair",), flag_values=values)
    told = {name: values[name].help for name in values}
    assert told["name"] == "what it is called (required)"
    assert told["seeds"] == "draws (default: 8)"
    assert told["other.seeds"] == "draws (default: 4)"
    assert told["kind"] == "of arrivals (default: plain)"
    assert told["tags"].startswith("a tag, which may be long (default: empty)")
    assert told["layers"] == "with --card: transformer layers (required)"
    assert values["kind"].parser.syntactic_help == "one of plain, bursty"
    assert values["kinds"].parser.syntactic_help == "some of plain, bursty"
    assert "pair" not in values


def test_options_are_checked_in_python_too():
    with pytest.raises(InputError, match="did you mean 'bursty'"):
        check_options(Cases(kind="bursti"))
    check_options(Config("a"))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("scheduler", (ComparisonConfig, SweepConfig, SingleRunConfig, BenchmarkConfig, TrainConfig)),
        ("fleet", (ComparisonConfig, SingleRunConfig, TrainConfig)),
        ("policies", (ComparisonConfig, SweepConfig)),
        ("checkpoint", (ComparisonConfig, SweepConfig)),
        ("stochastic", (ComparisonConfig, SweepConfig)),
        ("allow_drop", (ComparisonConfig, SweepConfig)),
        ("table_split", (ComparisonConfig, SweepConfig, TrainConfig)),
        ("table_match", (CaseConfig, PreparationConfig)),
        ("trace_start_s", (ComparisonConfig, PreparationConfig, TrainConfig)),
        ("trace_end_s", (ComparisonConfig, PreparationConfig, TrainConfig)),
    ],
)
def test_the_same_flag_is_the_same_everywhere(name, kinds):
    fields = [next(field for field in dataclasses.fields(kind) if field.name == name) for kind in kinds]
    assert len({(field.type, option_of(field).known, option_of(field).repeatable) for field in fields}) == 1
    if name != "policies":  # whose groups differ by the bounds
        helps = {
            option_of(field).help or field_comments(kind)[name]
            for field, kind in zip(fields, kinds, strict=True)
        }
        assert len(helps) == 1
