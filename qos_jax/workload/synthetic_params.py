"""The parameters of synthetic request tables: load and save them, select, name and draw their experts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qos_jax.errors import input_error, near_match
from qos_jax.files import Path, atomic_write, open_text

_REMEDY = "write it with python -m launch.fit_tables --lookahead_dir=FOLDER"

NUM_LEVELS = 5  # qualities are 0, 0.25, 0.5, 0.75, 1; a task marked right or wrong uses only the ends


@struct.dataclass
class SyntheticParams:
    """Parameters of K tasks, N experts and the predictor; all leaves float32 and traced."""

    task_weight: jax.Array  # [K] share of requests per task, sums to 1
    prompt_log_mean: jax.Array  # [K] mean of log prompt tokens
    prompt_log_std: jax.Array  # [K] std of log prompt tokens
    shared_factor: jax.Array  # [K, 3, 3] lower Cholesky factor of corr(g, d, log prompt tokens)
    quality_threshold: jax.Array  # [K, N, 4] ascending thresholds on the score latent
    quality_shared: jax.Array  # [K] rho, share of the score latent's variance due to the prompt
    length_log_mean: jax.Array  # [K, N] mu
    length_log_std: jax.Array  # [K, N] sigma
    length_shared: jax.Array  # [K] l^2, share of the length latent's variance due to the prompt
    runaway_threshold: jax.Array  # [K, N] length latent above which an answer hits the cap
    cap_tokens: jax.Array  # [K, N] tokens
    own_correlation: jax.Array  # [K] corr(e_i, h_i), negative: long answers are more often wrong
    difficulty_noise: jax.Array  # [] tau of d at error level 1
    own_quality_noise: jax.Array  # [] tau of e_i
    quality_jitter: jax.Array  # [] std of unshrunk noise on the predicted score latent, per expert
    length_noise: jax.Array  # [] tau of g
    own_length_noise: jax.Array  # [] tau of h_i
    typical_length_noise: jax.Array  # [] tau of g where lengths come from a trace, unknown task
    error_level: jax.Array  # [] 0 = perfect predictions, 1 = as real, larger = worse
    quality_bias: jax.Array  # [N] added to the predicted quality
    length_bias_log: jax.Array  # [N] added to the log of the predicted output tokens
    expert_names: tuple[str, ...] = struct.field(pytree_node=False)

    @property
    def num_experts(self) -> int:
        """Number of experts N."""
        return len(self.expert_names)


def load_params(path: Path) -> SyntheticParams:
    """Read parameters that :func:`save_params` wrote.

    Raises:
      InputError: naming the file and the field that is missing, unknown, misshapen or not finite.
    """
    with open_text(path) as stream:
        try:
            content = json.load(stream)
        except json.JSONDecodeError as error:
            raise input_error(f"is no JSON ({error})", file=path, remedy=_REMEDY) from None
    if not isinstance(content, dict) or not isinstance(content.get("params"), dict):
        raise input_error("is missing", file=path, field="params", remedy=_REMEDY)
    names, values = content.get("expert_names"), content["params"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise input_error("is no list of names", file=path, field="expert_names", remedy="name the experts")
    shapes = _shapes(len(np.atleast_1d(values.get("task_weight", [0.0]))), len(names))
    leaves: dict[str, Any] = {}
    for field, shape in shapes.items():
        if field not in values:
            raise input_error("is missing", file=path, field=field, remedy=_REMEDY)
        try:
            value = np.array(values[field], dtype=np.float32)
        except (TypeError, ValueError):
            raise input_error("is no array of numbers", file=path, field=field, remedy=_REMEDY) from None
        if value.shape != shape or not np.all(np.isfinite(value)):
            fault = f"has shape {value.shape}" if value.shape != shape else "is not finite"
            raise input_error(fault, file=path, field=field, remedy=f"give finite numbers of shape {shape}")
        leaves[field] = jnp.asarray(value)
    return SyntheticParams(**leaves, expert_names=tuple(names))


def save_params(path: Path, params: SyntheticParams, notes: Mapping[str, Any]) -> None:
    """Write parameters as JSON, rounded to six digits.

    Args:
      path: the file, written whole or not at all.
      params: the parameters.
      notes: plain values to put before them, such as source and licence.
    """
    fields = _shapes(params.task_weight.shape[0], params.num_experts)
    values = {f: _rounded(np.asarray(getattr(params, f), np.float64).tolist()) for f in fields}
    content = {**notes, "expert_names": list(params.expert_names), "params": values}
    with atomic_write(path) as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")


def experts_named(params: SyntheticParams, names: Sequence[str]) -> SyntheticParams:
    """Return the parameters of experts by name; ``X#2`` is a second copy of ``X``.

    Raises:
      InputError: a name is not among the calibrated experts.
    """
    known = params.expert_names
    for name in names:
        if name.split("#")[0] not in known:
            fault = f"no parameters for expert {name!r}{near_match(name, known)}"
            remedy = f"use one of {', '.join(known)}, or draw experts with sample_experts"
            raise input_error(fault, field="expert", remedy=remedy)
    chosen = select_experts(params, tuple(known.index(name.split("#")[0]) for name in names))
    return dataclasses.replace(chosen, expert_names=tuple(names))


def select_experts(params: SyntheticParams, indices: tuple[int, ...]) -> SyntheticParams:
    """Return the parameters of the experts at these indices; repeats are named ``X#2``, ``X#3``, ..."""
    names: list[str] = []
    for index in indices:
        base = params.expert_names[index]
        count = sum(name.split("#")[0] == base for name in names)
        names.append(base if count == 0 else f"{base}#{count + 1}")
    at = jnp.asarray(indices, jnp.int32)
    per_task = ("quality_threshold", "length_log_mean", "length_log_std", "runaway_threshold", "cap_tokens")
    chosen = {field: getattr(params, field)[:, at] for field in per_task}
    chosen |= {field: getattr(params, field)[at] for field in ("quality_bias", "length_bias_log")}
    return dataclasses.replace(params, expert_names=tuple(names), **chosen)


def sample_experts(key: jax.Array, params: SyntheticParams, num_experts: int) -> SyntheticParams:
    """Draw experts from the calibrated population.

    Whole shuffles of the population first, so up to N experts are distinct; those beyond N are repeats moved
    by half the population's own spread in ability (thresholds) and verbosity (log lengths).
    """
    order_key, ability_key, verbosity_key = jax.random.split(key, 3)
    population = params.num_experts
    rounds = -(-num_experts // population)
    order = [jax.random.permutation(k, population) for k in jax.random.split(order_key, rounds)]
    indices = tuple(int(i) for i in jnp.concatenate(order)[:num_experts])
    drawn = select_experts(params, indices)
    is_repeat = jnp.arange(num_experts) >= population  # [N]
    ability_std = 0.5 * jnp.mean(jnp.std(params.quality_threshold[:, :, 0], axis=1))
    verbosity_std = 0.5 * jnp.mean(jnp.std(params.length_log_mean, axis=1))
    ability = ability_std * jax.random.normal(ability_key, (num_experts,), jnp.float32)
    ability = jnp.where(is_repeat, ability, 0.0)
    verbosity = verbosity_std * jax.random.normal(verbosity_key, (num_experts,), jnp.float32)
    verbosity = jnp.where(is_repeat, verbosity, 0.0)
    return dataclasses.replace(
        drawn,
        quality_threshold=drawn.quality_threshold - ability[None, :, None],
        length_log_mean=drawn.length_log_mean + verbosity[None, :],
    )


def _shapes(k: int, n: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf for K tasks and N experts."""
    shapes: dict[str, tuple[int, ...]] = {
        "shared_factor": (k, 3, 3),
        "quality_threshold": (k, n, NUM_LEVELS - 1),
    }
    per_task = ("task_weight", "prompt_log_mean", "prompt_log_std", "quality_shared", "length_shared")
    shapes |= dict.fromkeys((*per_task, "own_correlation"), (k,))
    shapes |= dict.fromkeys(("length_log_mean", "length_log_std", "runaway_threshold", "cap_tokens"), (k, n))
    shapes |= dict.fromkeys(("quality_bias", "length_bias_log"), (n,))
    scalars = ("difficulty_noise", "own_quality_noise", "quality_jitter", "length_noise", "own_length_noise")
    return shapes | dict.fromkeys((*scalars, "typical_length_noise", "error_level"), ())


def _rounded(value: Any) -> Any:
    return [_rounded(v) for v in value] if isinstance(value, list) else float(f"{value:.6g}")
