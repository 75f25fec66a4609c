"""Fleets survive a round trip and every fault in a file is named with its place and remedy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qos_jax.errors import InputError
from qos_jax.serving.profile import FleetProfile
from qos_jax.workload import Fleet, fleet_path, read_fleet, take, write_fleet
from qos_jax.workload.fleet import COLUMNS, FLOAT_COLUMNS

GOOD = {
    "expert": "a",
    "max_running": "4",
    "max_waiting": "8",
    "max_batched_tokens": "512",
    "kv_capacity_tokens": "9000",
    "prefill_base_s": "0.01",
    "prefill_per_token_s": "1e-4",
    "prefill_per_token_sq_s": "0",
    "decode_base_s": "0.02",
    "decode_per_seq_s": "1e-5",
    "decode_per_context_token_s": "1e-7",
    "network_rtt_s": "0.01",
    "busy_power_w": "300",
    "idle_power_w": "40",
}


def write(path, *rows, header=COLUMNS):
    path.write_text("\n".join(["# note", ",".join(header), *(",".join(row) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"max_running": "0"}, "max_running"),
        ({"max_waiting": "0"}, "max_waiting"),
        ({"max_running": "1.5"}, "not an integer"),
        ({"max_running": "abc"}, "not a number"),
        ({"max_running": ""}, "is empty"),
        ({"max_batched_tokens": "3"}, "below max_running"),
        ({"kv_capacity_tokens": "1"}, "kv_capacity_tokens"),
        ({"kv_capacity_tokens": "3000000000"}, "out of range"),
        ({"decode_base_s": "0"}, "decode_base_s"),
        ({"decode_base_s": "nan"}, "not finite"),
        ({"prefill_base_s": "inf"}, "not finite"),
        ({"network_rtt_s": "-1"}, "network_rtt_s"),
        ({"idle_power_w": "400"}, "idle_power_w"),
        ({"expert": ""}, "is empty"),
        ({"expert": "drop"}, "reserved"),
    ],
)
def test_bad_cell_is_named_with_its_row(tmp_path, change, fault):
    path = write(tmp_path / "f.csv", GOOD.values(), {**GOOD, "expert": "b", **change}.values())
    with pytest.raises(InputError, match=fault) as error:
        read_fleet(path)
    assert "f.csv, row 4, field " in str(error.value)
    assert "; " in str(error.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_fleet(tmp_path / "none.csv")
    with pytest.raises(InputError, match="not a folder"):
        read_fleet(tmp_path)
    (tmp_path / "empty.csv").write_text("# only a note\n\n")
    with pytest.raises(InputError, match="is empty"):
        read_fleet(tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="plain text"):
        read_fleet(tmp_path / "binary.csv")
    with pytest.raises(InputError, match="no expert"):
        read_fleet(write(tmp_path / "f.csv"))
    with pytest.raises(InputError, match="appears twice"):
        read_fleet(write(tmp_path / "f.csv", GOOD.values(), GOOD.values()))
    with pytest.raises(InputError, match="missing"):
        read_fleet(write(tmp_path / "f.csv", list(GOOD.values())[:-1], header=COLUMNS[:-1]))
    with pytest.raises(InputError, match="unknown"):
        read_fleet(write(tmp_path / "f.csv", [*GOOD.values(), "1"], header=[*COLUMNS, "colour"]))
    with pytest.raises(InputError, match="twice"):
        read_fleet(write(tmp_path / "f.csv", [*GOOD.values(), "1"], header=[*COLUMNS, "expert"]))
    with pytest.raises(InputError, match="cells"):
        read_fleet(write(tmp_path / "f.csv", [*GOOD.values(), "1"]))
    with pytest.raises(InputError, match="did you mean 'max_runing'"):
        read_fleet(write(tmp_path / "f.csv", GOOD.values(), header=["expert", "max_runing", *COLUMNS[2:]]))


positive = st.floats(2.0**-30, 2.0**20, width=32, allow_subnormal=False)


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(positive, min_size=18, max_size=18),
    slots=st.lists(st.integers(1, 512), min_size=2, max_size=2),
)
def test_round_trip_is_exact(tmp_path_factory, values, slots):
    floats = np.array(values, np.float32).reshape(9, 2)
    leaves = dict(zip(FLOAT_COLUMNS, floats, strict=True))
    leaves["busy_power_w"] = leaves["busy_power_w"] + leaves["idle_power_w"]
    whole = np.array(slots, np.int32)
    profile = FleetProfile(
        max_running=whole, max_waiting=whole, max_batched_tokens=whole, kv_capacity_tokens=whole + 1, **leaves
    )
    path = tmp_path_factory.mktemp("fleet") / "f.csv"
    write_fleet(path, Fleet(("a", 'b "quoted", #1'), profile), ["a note"])
    back = read_fleet(path)
    assert back.names == ("a", 'b "quoted", #1')
    for field in COLUMNS[1:]:
        np.testing.assert_array_equal(getattr(back.profile, field), getattr(profile, field))


def test_context_limits_are_optional_and_survive_a_round_trip(tmp_path):
    header = (*COLUMNS, "context_limit_tokens")
    rows = [[*GOOD.values(), "512"], [*{**GOOD, "expert": "b"}.values(), ""]]
    fleet = read_fleet(write(tmp_path / "f.csv", *rows, header=header))
    np.testing.assert_array_equal(fleet.profile.context_limit_tokens, [512, 2**31 - 1])
    write_fleet(tmp_path / "again.csv", take(fleet, [1, 0]))
    again = read_fleet(tmp_path / "again.csv").profile
    np.testing.assert_array_equal(again.context_limit_tokens, [2**31 - 1, 512])
    # A slot's share of the cache, 9000 / 4, unless its own limit is less.
    np.testing.assert_array_equal(fleet.under("llama_cpp").profile.request_capacity_tokens, [512, 2250])
    np.testing.assert_array_equal(fleet.under("chunked_prefill").profile.request_capacity_tokens, [512, 9000])
    # All empty is as if the column were missing.
    rows = [[*GOOD.values(), ""]]
    assert read_fleet(write(tmp_path / "f.csv", *rows, header=header)).profile.context_limit_tokens is None
    for cell, fault in (("1", "out of range"), ("many", "not a number"), ("10.5", "not an integer")):
        with pytest.raises(InputError, match=fault) as error:
            read_fleet(write(tmp_path / "f.csv", [*GOOD.values(), cell], header=header))
        assert "f.csv, row 3, field 'context_limit_tokens'" in str(error.value)


def test_take_names_repeats_and_keeps_rows():
    fleet = read_fleet(fleet_path("edge6"))
    taken = take(fleet, [3, 0, 3, 3])
    assert taken.names == ("Yi-1.5-34B-Chat", fleet.names[0], "Yi-1.5-34B-Chat#2", "Yi-1.5-34B-Chat#3")
    assert taken.profile.decode_base_s[2] == fleet.profile.decode_base_s[3]
    assert (taken.running_slots, taken.waiting_slots, taken.num_experts) == (16, 16, 4)
    with pytest.raises(InputError, match="outside"):
        take(fleet, [6])
