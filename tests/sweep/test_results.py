"""The results file of a sweep: rows whole or absent, each once, in order at the end."""

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.runs.statistics import mean_ci
from qos_jax.simulation.metrics import METRICS
from qos_jax.sweep.results import ResultsFile

COLUMNS = ["cell", "policy", "load"]


def metrics(rows, seeds=3):
    drawn = np.random.default_rng(rows).random((rows, seeds, len(METRICS)))
    drawn[0, 0, 2] = np.nan  # undefined for a seed
    return drawn


def test_what_is_appended_is_read_back(tmp_path):
    file, given = ResultsFile(tmp_path / "sweep.csv", COLUMNS), metrics(2)
    file.append([[7, "b", 0.1], [3, "a, or so", 0.2]], given)
    assert file.is_finished(7, "b")
    assert not file.is_finished(7, "a, or so")
    table = ResultsFile(tmp_path / "sweep.csv", COLUMNS).table()
    assert table.text["cell"].tolist() == ["7", "3"]
    assert table.text["policy"].tolist() == ["b", "a, or so"]
    np.testing.assert_allclose(table.numbers("load"), [0.1, 0.2])
    for index, name in enumerate(METRICS):
        estimate = mean_ci(given[:, :, index])
        for end, expected in (("", estimate.mean), ("_ci_low", estimate.low), ("_ci_high", estimate.high)):
            np.testing.assert_allclose(table.numbers(name + end), expected, rtol=1e-8, err_msg=name)
    assert table.text[list(METRICS)[2]][0] == ""


def test_a_row_cut_short_is_forgotten_and_written_again(tmp_path):
    path, given = tmp_path / "sweep.csv", metrics(2)
    file = ResultsFile(path, COLUMNS)
    rows = [[0, "a", 1.0], [1, "a", 2.0]]
    file.append(rows, given)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 50, whole.index(b"\n1,a") + 1):
        path.write_bytes(whole[:cut])
        again = ResultsFile(path, COLUMNS)
        assert again.is_finished(0, "a")
        assert not again.is_finished(1, "a")
        again.append(rows, given)
        assert path.read_bytes() == whole


def test_rows_end_in_order_however_they_came(tmp_path):
    given = metrics(4)
    rows = [[0, "b", 1.0], [0, "a", 1.0], [10, "b", 2.0], [2, "b", 2.0]]
    files = []
    for name, order in (("one", [0, 1, 2, 3]), ("two", [3, 2, 0, 1])):
        file = ResultsFile(tmp_path / name, COLUMNS)
        for i in order:
            file.append([rows[i]], given[[i]])
        file.put_in_order(["b", "a"])
        files.append(file)
    assert files[0].path.read_bytes() == files[1].path.read_bytes()
    table = files[0].table()
    assert list(zip(table.text["cell"], table.text["policy"], strict=True)) == [
        ("0", "b"),
        ("0", "a"),
        ("2", "b"),
        ("10", "b"),
    ]


@pytest.mark.parametrize("content", ["when,what\n", "", "\n\n", "cell,policy\n1,a\n"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "sweep.csv").write_text(content)
    with pytest.raises(InputError, match=r"sweep.csv, row 1: .*; remove the file"):
        ResultsFile(tmp_path / "sweep.csv", COLUMNS)


def test_a_damaged_row_is_named(tmp_path):
    file = ResultsFile(tmp_path / "sweep.csv", COLUMNS)
    with open(file.path, "a") as stream:
        stream.write("1,a\n")
    with pytest.raises(InputError, match=r"row 2: is no row of this sweep; "):
        ResultsFile(file.path, COLUMNS)
