"""Table files: what is written is read again; a fault is one error that names file, array and remedy."""

import dataclasses
import zipfile

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.workload import RequestTable, measure_length_log_std, read_table, write_table

NAMES = ("ant", "bee", "cat")
ROWS = 5


@pytest.fixture
def table() -> RequestTable:
    rng = np.random.default_rng(3)
    shape = (ROWS, len(NAMES))
    return RequestTable(
        prompt_tokens=rng.integers(1, 900, ROWS).astype(np.int32),
        quality=rng.random(shape, np.float32),
        output_tokens=rng.integers(1, 900, shape).astype(np.int32),
        predicted_quality=rng.random(shape, np.float32),
        predicted_output_tokens=(900 * rng.random(shape, np.float32) + 1),
    )


@pytest.fixture
def arrays(table) -> dict:
    """The arrays of a good file, for a test to spoil."""
    return {
        "version": np.array(1),
        "experts": np.array(NAMES),
        **{name: np.array(value) for name, value in vars(table).items() if value is not None},
        "split": np.array([0, 1, 2, 2, 0]),
        "length_log_std": np.array([0.5, 0.25, 1.0]),
    }


def assert_same(table: RequestTable, other: RequestTable) -> None:
    for field in dataclasses.fields(table):
        mine, theirs = getattr(table, field.name), getattr(other, field.name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def test_read_again_as_written(table, tmp_path):
    path = tmp_path / "new" / "mine.npz"
    write_table(path, NAMES, table, split=[0, 1, 2, 2, 0], length_log_std=[0.5, 0.25, 1.0])
    named = read_table(path)
    assert named.names == NAMES
    assert named.file == str(path)
    assert named.num_rows == ROWS
    assert_same(named.table, table)
    np.testing.assert_array_equal(named.split, [0, 1, 2, 2, 0])
    np.testing.assert_array_equal(named.length_log_std, np.array([0.5, 0.25, 1.0], np.float32))
    assert [p.name for p in path.parent.iterdir()] == ["mine.npz"]


def test_the_same_table_is_the_same_bytes(table, tmp_path):
    """So that a digest of the file tells whether the table is another."""
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    write_table(first, NAMES, table)
    named = read_table(first)
    write_table(second, named.names, named.table)
    assert first.read_bytes() == second.read_bytes()


def test_the_error_is_measured_where_none_is_given(table, tmp_path):
    write_table(tmp_path / "mine.npz", NAMES, table)
    named = read_table(tmp_path / "mine.npz")
    assert named.split is None
    measured = measure_length_log_std(table)
    np.testing.assert_allclose(named.length_log_std, measured, rtol=1e-6)


def test_wider_kinds_are_read_as_the_tables_own(arrays, tmp_path):
    wide = {
        k: v.astype({"i": np.int64, "f": np.float64}.get(v.dtype.kind, v.dtype)) for k, v in arrays.items()
    }
    np.savez(tmp_path / "wide.npz", **wide)
    np.savez(tmp_path / "mine.npz", **arrays)
    assert_same(read_table(tmp_path / "wide.npz").table, read_table(tmp_path / "mine.npz").table)


def _set(field: str, value):
    return lambda arrays: arrays.update({field: np.asarray(value)})


def _at(field: str, where, value):
    def spoil(arrays):
        arrays[field] = arrays[field].astype(np.float64 if isinstance(value, float) else np.int64)
        arrays[field][where] = value

    return spoil


FAULTS = {
    "no version": (lambda a: a.pop("version"), "'version': array is missing; write"),
    "later version": (_set("version", 2), "'version': is '2', and only 1 is known; write"),
    "version of text": (_set("version", "1\n2"), "'version': is '1.*2', and only 1 is known"),
    "no quality": (
        lambda a: a.pop("quality"),
        "'quality': array is missing.*; write .* holds version, exp",
    ),
    "misspelt": (_set("lenght_log_std", 1), "unknown .did you mean 'length_log_std'.*; rename"),
    "no names": (_set("experts", np.array([], np.str_)), "'experts': is <U1 of shape .0,.; give"),
    "numbers for names": (_set("experts", [1, 2, 3]), "'experts': is int64 of shape"),
    "name twice": (_set("experts", ["ant", "bee", "ant"]), r"'ant' at experts\[2\] appears twice; give"),
    "name empty": (_set("experts", ["ant", "", "cat"]), r"experts\[1\] is empty"),
    "name of two lines": (_set("experts", ["ant", "b\nee", "cat"]), r"'b\\nee' .*is not printable"),
    "name drop": (_set("experts", ["ant", "Drop", "cat"]), "'Drop' .* is reserved"),
    "a name too few": (_set("experts", ["ant", "bee"]), r"has shape \(5, 3\), not \(5, 2\); give M"),
    "transposed": (
        lambda a: a.update(quality=a["quality"].T),
        r"'quality': has shape \(3, 5\), not \(5, 3\)",
    ),
    "a row too few": (lambda a: a.update(split=a["split"][1:]), r"'split': has shape \(4,\), not \(5,\)"),
    "no row": (
        lambda a: a.update({k: v[:0] for k, v in a.items() if v.shape[:1] == (ROWS,)}),
        r"'prompt_tokens': has shape \(0,\), not \(1,\); give M requests, at least 1",
    ),
    "text for numbers": (_set("prompt_tokens", ["1"] * ROWS), "'prompt_tokens': is <U1; give integers"),
    "tokens as reals": (
        lambda a: a.update(output_tokens=a["output_tokens"] + 0.5),
        "'output_tokens': is float64; give integers",
    ),
    "no prompt": (
        _at("prompt_tokens", 4, 0),
        r"0 at prompt_tokens\[4\] is out of range; give a whole number from 1 to 2147483647",
    ),
    "beyond int32": (_at("output_tokens", (0, 2), 2**31), r"2147483648 at output_tokens\[0, 2\] is out"),
    "beyond int32 in all": (
        _at("output_tokens", (3, 0), 2**31 - 1),
        "output of row 3 are 21474[0-9]+ tokens; keep",
    ),
    "NaN": (
        _at("quality", (1, 2), np.nan),
        r"'quality': nan at quality\[1, 2\] is out of range; give a finite.* 0 to 1",
    ),
    "quality above 1": (_at("predicted_quality", (1, 0), 1.5), r"1.5 at predicted_quality\[1, 0\]"),
    "quality below 0": (_at("quality", (1, 0), -0.25), r"-0.25 at quality\[1, 0\]"),
    "nothing predicted": (
        _at("predicted_output_tokens", (2, 1), 0.0),
        r"0.0 at predicted_output_tokens\[2, 1\]",
    ),
    "endless prediction": (_at("predicted_output_tokens", (2, 1), np.inf), "inf at"),
    "no such split": (
        _at("split", 3, 3),
        r"3 at split\[3\] is out of range; .* from 0 to 2",
    ),
    "negative error": (_at("length_log_std", 1, -0.5), r"-0.5 at length_log_std\[1\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named(fault, arrays, tmp_path):
    spoil, says = FAULTS[fault]
    spoil(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=says) as caught:
        read_table(tmp_path / "bad.npz")
    assert str(caught.value).startswith(str(tmp_path / "bad.npz"))
    assert "\n" not in str(caught.value)


def _zip_of(path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


def _npy(path) -> None:
    with open(path, "wb") as stream:
        np.save(stream, np.ones(3))


NOT_TABLES = {
    "missing": (lambda p: None, "no such file; check"),
    "folder": (lambda p: p.mkdir(), "cannot be read .*; give"),
    "empty": (lambda p: p.write_bytes(b""), "not a readable .npz file of plain arrays; write"),
    "text": (lambda p: p.write_text("arrival_s,prompt_tokens\n"), "not a readable .npz"),
    "one array": (lambda p: _npy(p), "not a readable .npz"),
    "pickles": (lambda p: np.savez(p, version=np.array([{}], object)), "not a readable .npz"),
    "zip of text": (lambda p: _zip_of(p, "version.npy", b"1"), "'version': is .*; write"),
    "zip of a broken header": (
        lambda p: _zip_of(p, "version.npy", b"\x93NUMPY\x01\x00\x06\x00{'a':("),
        "readable",
    ),
}


@pytest.mark.parametrize("kind", NOT_TABLES)
def test_what_is_no_table(kind, tmp_path):
    make, says = NOT_TABLES[kind]
    make(tmp_path / "mine.npz")
    with pytest.raises(InputError, match=says):
        read_table(tmp_path / "mine.npz")


def test_damaged_files(arrays, tmp_path):
    """Cut anywhere, a file is refused; with a byte changed, it is refused or the change hit nothing."""
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **arrays)
    whole, good = path.read_bytes(), read_table(path)
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_table(path)
    refused = 0
    for at in range(0, len(whole), 31):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            read = read_table(path)
        except InputError:
            refused += 1
        else:
            assert_same(read.table, good.table)
    assert refused > 10


def test_a_bad_table_is_not_written(table, tmp_path):
    path = tmp_path / "mine.npz"
    write_table(path, NAMES, table)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"7.0 at quality\[0, 0\]"):
        write_table(path, NAMES, table.replace(quality=np.full((ROWS, 3), 7.0, np.float32)))
    with pytest.raises(InputError, match="'experts'"):
        write_table(path, (), table)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.npz"]
