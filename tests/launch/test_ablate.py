"""``launch.ablate`` end to end: variants trained twice and compared, gone on with, and its bad input."""

import csv
import json

import pytest

from tests.launch.trained import TINY_FLAGS

# Of the search: its programs are ready soonest, and what is tested is the run around it.
VARIANTS = ("loads",)
FLAGS = [
    *(f"--train.{name}={value}" for name, value in TINY_FLAGS.items()),
    "--train.distil.updates=0",
    "--train.network.encoder=sets",
    f"--variants={','.join(VARIANTS)}",
    "--runs=2",
    "--policies=projected_greedy",
    "--baseline=projected_greedy",
    "--cases.workloads=poisson",
    "--cases.loads=0.75",
    "--cases.seeds=2",
    "--cases.num_requests=16",
    "--noplots",
]


@pytest.fixture(scope="module")
def done(launch, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation")
    return out, launch("launch.ablate", *FLAGS, f"--out={out}")


def test_it_trains_every_variant_and_compares_them(done):
    out, outcome = done
    assert outcome.code == 0, outcome.err
    with open(out / "comparison" / "comparison.csv") as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "average_qos"]
    assert {row["policy"] for row in rows} == {"loads", "loads#1", "loads#2", "projected_greedy"}
    assert {row["baseline"] for row in rows} == {"projected_greedy"}
    for seed, folder in enumerate(("loads", "loads_seed_1")):
        trained = json.loads((out / folder / "config.json").read_text())
        assert trained["seed"] == seed
        assert "price_by_load" in trained["search"]["numbers"]
    assert "loads: search of the constants and of the powers of the load" in outcome.out


def test_run_again_it_trains_nothing_anew(done, launch):
    out, before = done
    again = launch("launch.ablate", *FLAGS, f"--out={out}")
    assert again.code == 0, again.err
    assert again.out.count("there is nothing to resume") == 2 * len(VARIANTS)
    assert again.out.split("loads: ")[-1] == before.out.split("loads: ")[-1]


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--runs=0", "field 'runs'"),
        ("--variants=fulll", "did you mean 'full'"),
        ("--variants=", "give some of"),
        ("--baseline=ppo", "neither a policy nor a variant"),
        ("--policies=projected_greedy,nobody", "'nobody' is unknown"),
        ("--cases.loads=0", "field 'loads'"),
        ("--train.fleet=nowhere.csv", "no such file"),
        ("--train.search.candidates=3", "train.search, field 'candidates': 3 is odd"),
    ],
)
def test_bad_input_is_told_before_anything_trains(launch, tmp_path, flag, told):
    outcome = launch("launch.ablate", *FLAGS, flag, f"--out={tmp_path / 'runs'}")
    assert outcome.code == 2
    assert told in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "runs").exists()
