"""The contract of a request table, for tests of whatever makes one."""

import numpy as np

from qos_jax.workload import RequestTable


def check_contract(table: RequestTable) -> None:
    """Check shapes, dtypes and ranges of every leaf."""
    m, n = table.quality.shape
    for field, shape in (("prompt_tokens", (m,)), ("output_tokens", (m, n))):
        values = np.asarray(getattr(table, field))
        assert values.shape == shape
        assert values.dtype == np.int32
        assert values.min() >= 1
    for field in ("quality", "predicted_quality"):
        values = np.asarray(getattr(table, field))
        assert values.shape == (m, n)
        assert np.all((values >= 0) & (values <= 1))
    predicted = np.asarray(table.predicted_output_tokens)
    assert predicted.shape == (m, n)
    assert np.all(np.isfinite(predicted) & (predicted > 0))
