"""The request table: what each request asks for and what each expert would answer, true and predicted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qos_jax.errors import input_error


@struct.dataclass
class RequestTable:
    """M requests and the answers N experts would give them; leaves are NumPy or JAX arrays."""

    prompt_tokens: jax.Array  # [M] int32, tokens, >= 1
    quality: jax.Array  # [M, N] float32, in [0, 1], of the true answer
    output_tokens: jax.Array  # [M, N] int32, tokens of the true answer, >= 1
    predicted_quality: jax.Array  # [M, N] float32, in [0, 1]
    predicted_output_tokens: jax.Array  # [M, N] float32, tokens, > 0: the predictor's MEDIAN

    @property
    def num_rows(self) -> int:
        """Number of requests M."""
        return int(self.prompt_tokens.shape[-1])

    @property
    def num_experts(self) -> int:
        """Number of experts N."""
        return int(self.quality.shape[-1])


@struct.dataclass
class PredictionError:
    """How far the predictions of a table are off, as a router is allowed to know it."""

    length_log_std: jax.Array  # [N] float32, std of log(true) - log(predicted) output tokens
    quality_std: jax.Array  # [N] float32, root mean square of true - predicted quality


def measure_prediction_error(table: RequestTable) -> PredictionError:
    """Return the prediction error of a table, measured over its rows; jittable."""
    length = jnp.log(jnp.asarray(table.output_tokens, jnp.float32)) - jnp.log(
        jnp.asarray(table.predicted_output_tokens, jnp.float32)
    )
    quality = jnp.asarray(table.quality, jnp.float32) - jnp.asarray(table.predicted_quality, jnp.float32)
    return PredictionError(
        length_log_std=jnp.std(length, axis=0),
        quality_std=jnp.sqrt(jnp.mean(jnp.square(quality), axis=0)),
    )


def validate_request_table(table: RequestTable) -> None:
    """Raise InputError, naming row (from 0, as an index) and field, unless the table keeps its contract."""
    m, n = np.shape(table.quality) if np.ndim(table.quality) == 2 else (-1, -1)
    if m < 1 or n < 1:
        raise input_error(
            f"has shape {np.shape(table.quality)}", field="quality", remedy="give [requests, experts]"
        )
    integral = {"prompt_tokens": (m,), "output_tokens": (m, n)}
    real = {"quality": (m, n), "predicted_quality": (m, n), "predicted_output_tokens": (m, n)}
    for field, shape in {**integral, **real}.items():
        values = np.asarray(getattr(table, field))
        if values.shape != shape:
            raise input_error(f"has shape {values.shape}, not {shape}", field=field, remedy="match quality")
        if field in integral:
            if values.dtype != np.int32:
                raise input_error(f"is {values.dtype}, not int32", field=field, remedy="cast it")
            bad, rule = values < 1, "a whole number >= 1"
        elif field == "predicted_output_tokens":
            bad, rule = ~(np.isfinite(values) & (values > 0)), "a finite number > 0"
        else:
            bad, rule = ~((values >= 0) & (values <= 1)), "a number in [0, 1]"
        if bad.any():
            where = np.unravel_index(int(np.argmax(bad)), bad.shape)
            place = f"{field}[{', '.join(str(int(k)) for k in where)}]"
            raise input_error(f"{values[where]} at {place}", field=field, remedy=f"give {rule}")
