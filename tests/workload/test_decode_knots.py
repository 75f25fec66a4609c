"""Decode times by batch size are read, written and refused by row; affine experts keep their law."""

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.serving.profile import affine_between, decode_law
from qos_jax.workload import read_fleet, take, write_fleet
from qos_jax.workload.capacity import capacity_of_means_per_s
from qos_jax.workload.decode_knots import KNOT_COLUMNS
from qos_jax.workload.fleet import COLUMNS
from tests.workload.test_fleet import GOOD, write

LISTS = dict(zip(KNOT_COLUMNS, ("1 2 4", "0.001 0.003 0.009", "1e-6 3e-6 2e-6"), strict=True))
NONE = dict.fromkeys(KNOT_COLUMNS, "")
HEADER = (*COLUMNS, *KNOT_COLUMNS)


@pytest.fixture
def fleet(tmp_path):
    rows = [{**GOOD, **LISTS}, {**GOOD, "expert": "b", **NONE}]
    return read_fleet(write(tmp_path / "f.csv", *(row.values() for row in rows), header=HEADER))


def law(profile, batch):
    return np.asarray(decode_law(profile, np.full(2, batch, np.float32))).T


def test_between_knots_it_is_linear_and_beyond_them_the_last_slope_goes_on(fleet):
    for batch, fixed_s, per_token_s in [
        (1, 0.001, 1e-6),
        (2, 0.003, 3e-6),
        (3, 0.006, 2.5e-6),
        (4, 0.009, 2e-6),
        (6, 0.015, 2e-6),
    ]:
        np.testing.assert_allclose(law(fleet.profile, batch)[0], [fixed_s, per_token_s], rtol=1e-5)


def test_an_affine_expert_beside_it_keeps_its_law(fleet):
    for batch in (1, 3, 16):
        np.testing.assert_allclose(law(fleet.profile, batch)[1], [0.02 + 1e-5 * batch, 1e-7], rtol=1e-6)


def test_the_chord_is_right_at_both_its_ends(fleet):
    chord = affine_between(fleet.profile, np.full(2, 4.0, np.float32))
    assert chord.decode_knots == ()
    for batch in (1, 4):
        np.testing.assert_allclose(law(chord, batch)[:, 0], law(fleet.profile, batch)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(law(chord, 4)[:, 1], law(fleet.profile, 4)[:, 1], rtol=1e-5)


def test_capacity_is_that_of_the_batch_it_runs(fleet):
    # A full batch of 4: prefill 0.01 + 100 * 1e-4, then 19 iterations of .009 + 2e-6 * 4 * 110, shared by 4.
    per_s = capacity_of_means_per_s(fleet.profile, 100.0, 1e4, np.float32(20.0), xp=np, dtype=np.float64)
    assert per_s[0] == pytest.approx(1 / (0.02 + 19 * (0.009 + 2e-6 * 4 * 110) / 4), rel=1e-5)


def test_it_survives_a_round_trip_and_taking(fleet, tmp_path):
    write_fleet(tmp_path / "again.csv", take(fleet, [1, 0, 0]))
    again = read_fleet(tmp_path / "again.csv")
    for ours, theirs in zip(again.profile.decode_knots, fleet.profile.decode_knots, strict=True):
        for name, values in vars(theirs).items():
            np.testing.assert_array_equal(getattr(ours, name), np.asarray(values)[[1, 0, 0]])


def test_a_fleet_without_lists_has_no_knots(tmp_path):
    row = {**GOOD, **NONE}
    assert read_fleet(write(tmp_path / "f.csv", row.values(), header=HEADER)).profile.decode_knots == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"decode_batches": "1 2"}, "decode_batches': lists of 2, 3 and 3 numbers"),
        ({"decode_batches": "2 3 4"}, "rising batch sizes from 1"),
        ({"decode_batches": "1 4 2"}, "rising batch sizes from 1"),
        ({"decode_batch_s": "0.001 0.003 0.002"}, "decode_batch_s': falls"),
        ({"decode_batch_s": "0 0.003 0.004"}, "decode_batch_s"),
        ({"decode_batch_s": "0.001 x 0.004"}, "no list of numbers"),
        ({"decode_batch_per_context_token_s": "1e-6 -1e-6 0"}, "below 0"),
    ],
)
def test_bad_lists_are_named_with_their_row(tmp_path, change, fault):
    rows = [{**GOOD, **LISTS}, {**GOOD, "expert": "b", **LISTS, **change}]
    with pytest.raises(InputError, match=fault) as error:
        read_fleet(write(tmp_path / "f.csv", *(row.values() for row in rows), header=HEADER))
    assert "f.csv, row 4, field 'decode_batch" in str(error.value)


def test_all_three_columns_or_none(tmp_path):
    with pytest.raises(InputError, match=r"decode_batch_s': column is missing"):
        read_fleet(write(tmp_path / "f.csv", [*GOOD.values(), "1 2"], header=(*COLUMNS, "decode_batches")))
