"""Figures fitted to the public files are those that are shipped."""

import pathlib

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.tables.answers.lookahead import read_arrays
from qos_jax.tables.fit_figures import fit_task, write_figures
from qos_jax.workload import data_folder, load_calibration

SHARED = pathlib.Path(__file__).parents[3] / "shared/data"


def test_fitting_writes_the_shipped_files_again(tmp_path):
    traces = {
        "azure_conv": "AzureLLMInferenceTrace_conv.csv",
        "azure_code": "AzureLLMInferenceTrace_code.csv",
    }
    if not SHARED.is_dir():
        pytest.skip("the public traces are not at ../shared")
    items = [f"{name}={SHARED / 'azure2023' / file}" for name, file in traces.items()]
    written = write_figures(tmp_path, None, items)
    for path in written:
        shipped = data_folder() / path.relative_to(tmp_path)
        assert path.read_text() == shipped.read_text()
    with pytest.raises(InputError, match="NAME=FILE"):
        write_figures(tmp_path, None, ["azure"])
    with pytest.raises(InputError, match="nothing to do"):
        write_figures(tmp_path, None, [])


def test_moment_fit_agrees_with_the_shipped_calibration():
    if not SHARED.is_dir():
        pytest.skip("the real table is not at ../shared")
    table = read_arrays(SHARED / "lookahead6")
    rows = table["dataset"] == "math"
    fit = fit_task(
        *(np.asarray(table[f], np.float64)[rows] for f in ("score", "out_tokens", "prompt_tokens"))
    )
    shipped = load_calibration()
    for field, value in fit.items():
        np.testing.assert_allclose(getattr(shipped, field)[3], value, rtol=1e-4, atol=1e-4, err_msg=field)
