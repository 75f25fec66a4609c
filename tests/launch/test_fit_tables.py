"""``launch.fit_tables``: figures of a trace that the readers of shipped figures read."""

import numpy as np
import pytest

from qos_jax.workload import profiles


def test_figures_of_a_trace(launch, tmp_path, monkeypatch):
    trace = tmp_path / "mine.csv"
    arrival_s = np.cumsum(np.random.default_rng(0).exponential(0.5, 600))
    rows = "".join(f"{t},{10 + i % 5},{3 + i % 2}\n" for i, t in enumerate(arrival_s))
    trace.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    ended = launch("launch.fit_tables", f"--trace=mine={trace}", f"--out={tmp_path / 'data'}")
    assert ended.code == 0, ended.err
    assert ended.out.count("wrote ") == 3
    monkeypatch.setattr(profiles, "data_folder", lambda: tmp_path / "data")
    profile = profiles.load_rate_profile("mine")
    assert profile.mean_rate_per_s == pytest.approx(2.0, rel=0.1)
    assert float(np.exp(profiles.load_length_histogram("mine").log_weight).sum()) == pytest.approx(1.0)
