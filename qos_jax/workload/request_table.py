"""The request table: prompt tokens of each request; quality and length of each answer, true and predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qos_jax.serving.state import PrefixLevel

PREFIX_COLUMNS = ("prefix_group", "prefix_tokens")
PREFIX_FIELDS = (*PREFIX_COLUMNS, "prefix_path")


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
    # Leaves [M], where groups are nested: a request's from the root, ``prefix_group`` the last of them.
    prefix_path: tuple[PrefixLevel, ...] | None = None

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
    return dataclasses.replace(table, prefix_group=None, prefix_tokens=None, prefix_path=None)


def prefix_levels(table: RequestTable) -> int:
    """Return how many groups one within the other a request may belong to; 0 = one at most."""
    return len(table.prefix_path or ())


def with_prefixes(table: RequestTable, levels: int = 0) -> RequestTable:
    """Return the requests with their prefix fields: as given, or else none of them shares anything.

    Args:
      table: NumPy leaves.
      levels: of the nested groups that it then has, at least those it has now.
    """
    nothing = np.zeros(np.shape(table.prompt_tokens), np.int32)
    if table.prefix_group is None:
        none: dict[str, Any] = {"prefix_group": nothing - 1, "prefix_tokens": nothing}
        table = dataclasses.replace(table, **none)
    if levels == 0:
        return table
    # A group that is not nested goes on to the end of prompt and answer.
    end = np.where(np.asarray(table.prefix_group) < 0, 0, np.iinfo(np.int32).max).astype(np.int32)
    group: Any = np.asarray(table.prefix_group)
    path = table.prefix_path or (PrefixLevel(group, end),)  # type: ignore[arg-type]
    further: Any = PrefixLevel(nothing - 1, nothing)  # type: ignore[arg-type]
    return dataclasses.replace(table, prefix_path=(*path, *(further,) * (levels - len(path))))


def measure_length_log_std(table: RequestTable) -> jax.Array:
    """Return the std of log(true) - log(predicted) output tokens over a table's rows, [N] float32; jittable.

    It is what a router is given of how far predictions of each expert's output length are off.
    """
    true = jnp.log(jnp.asarray(table.output_tokens, jnp.float32))
    predicted = jnp.log(jnp.asarray(table.predicted_output_tokens, jnp.float32))
    return jnp.std(true - predicted, axis=0)
