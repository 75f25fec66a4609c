"""The request table: prompt tokens of each request; quality and length of each answer, true and predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

PREFIX_FIELDS = ("prefix_group", "prefix_tokens")


@struct.dataclass
class RequestTable:
    """M requests and the answers of N experts to each; leaves are NumPy or JAX arrays."""

    prompt_tokens: jax.Array  # [M] int32, tokens, >= 1
    quality: jax.Array  # [M, N] float32, in [0, 1], of the true answer
    output_tokens: jax.Array  # [M, N] int32, tokens of the true answer, >= 1
    predicted_quality: jax.Array  # [M, N] float32, in [0, 1]
    predicted_output_tokens: jax.Array  # [M, N] float32, tokens, > 0: the predictor's MEDIAN
    # A request shares its first tokens with every earlier request of its group, one of a conversation's turns
    # with those before it; None = no request shares any.
    prefix_group: jax.Array | None = None  # [M] int32, below 0 = none
    prefix_tokens: jax.Array | None = None  # [M] int32, at most the prompt's

    @property
    def num_rows(self) -> int:
        """Number of requests M."""
        return int(self.prompt_tokens.shape[-1])

    @property
    def num_experts(self) -> int:
        """Number of experts N."""
        return int(self.quality.shape[-1])


def without_prefixes(table: RequestTable) -> RequestTable:
    """Return the requests as those that share nothing, which caches have no use for."""
    return dataclasses.replace(table, prefix_group=None, prefix_tokens=None)


def with_prefixes(table: RequestTable) -> RequestTable:
    """Return the requests with both prefix fields: as given, or else none of them shares anything."""
    if table.prefix_group is not None:
        return table
    nothing = np.zeros(np.shape(table.prompt_tokens), np.int32)
    none: dict[str, Any] = {"prefix_group": nothing - 1, "prefix_tokens": nothing}
    return dataclasses.replace(table, **none)


def measure_length_log_std(table: RequestTable) -> jax.Array:
    """Return the std of log(true) - log(predicted) output tokens over a table's rows, [N] float32; jittable.

    It is what a router is given of how far predictions of each expert's output length are off.
    """
    true = jnp.log(jnp.asarray(table.output_tokens, jnp.float32))
    predicted = jnp.log(jnp.asarray(table.predicted_output_tokens, jnp.float32))
    return jnp.std(true - predicted, axis=0)
