"""Derive a profile without measurements: a roofline of model size, bandwidth and FLOP/s, made affine."""

from __future__ import annotations

import dataclasses

import numpy as np

from qos_jax.checks import Interval, check_range
from qos_jax.errors import input_error
from qos_jax.profiling.coefficients import COEFFICIENTS, CoefficientFit
from qos_jax.profiling.goodness import Goodness
from qos_jax.profiling.iteration_fit import iteration_design, iteration_quality
from qos_jax.profiling.iteration_log import IterationLog
from qos_jax.profiling.linear_fit import solve

# Values that one token writes and reads per layer beside weights and KV, in units of the hidden size: about 8
# around attention and norms, 16 around a feed-forward of 3 to 4 times the hidden size.
ACTIVATIONS_PER_HIDDEN = 24
POINTS = 12  # of the grid in each direction


@dataclasses.dataclass(frozen=True)
class RooflineConfig:
    """A dense decoder-only transformer on one GPU (or several, their figures added up).

    Raises:
      InputError: a number out of its range, naming the field, which is also the flag's name.
    """

    parameters: float  # weights read in every iteration: all but the input embedding, such as 8.03e9
    layers: int  # transformer layers
    hidden_size: int  # width of a token's hidden state
    kv_heads: int  # key-value heads, fewer than attention heads under grouped-query attention
    head_dim: int  # size of an attention head
    bandwidth_gb_per_s: float  # GPU memory bandwidth, 10^9 bytes / s, as published
    tflop_per_s: float  # dense TFLOP/s at the weights' precision, as published
    memory_gb: float | None = None  # GPU memory, 10^9 bytes; only for the KV capacity
    weight_bytes: float = 2.0  # bytes per weight: 2 = bf16, 1 = 8 bits
    kv_bytes: float = 2.0  # bytes per cached value
    bandwidth_efficiency: float = 0.8  # share of the published bandwidth reached
    compute_efficiency: float = 0.7  # share of the published FLOP/s reached
    memory_utilisation: float = 0.9  # share of the memory for weights and KV cache
    overhead_s: float = 0.0  # seconds that every iteration takes besides (CPU, launches)

    def __post_init__(self) -> None:
        shares = ("bandwidth_efficiency", "compute_efficiency", "memory_utilisation")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.name != "memory_gb":
                raise input_error("is missing", field=field.name, remedy=f"give --{field.name}=NUMBER")
            most = 1.0 if field.name in shares else 1e18
            check_range(self, [field.name], Interval(0, most, above=field.name != "overhead_s"))

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of keys and values that the cache holds for one token."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Roofline:
    """Affine coefficients, and how well they follow the roofline itself, which has a kink."""

    fit: CoefficientFit  # covariance NaN: nothing was measured
    quality: dict[str, Goodness]
    grid: IterationLog  # what the affine form was fitted to


def roofline_kv_tokens(config: RooflineConfig) -> int:
    """Return how many tokens of KV the memory holds beside the weights; activations take some of it.

    Raises:
      InputError: the memory is not given, or does not hold the weights.
    """
    if config.memory_gb is None:
        raise input_error(
            "is missing", field="kv_capacity_tokens", remedy="give it, or the GPU's --memory_gb"
        )
    free = config.memory_gb * 1e9 * config.memory_utilisation - config.parameters * config.weight_bytes
    tokens = int(free / config.kv_bytes_per_token)
    if tokens < 2:
        raise input_error(
            f"{config.memory_gb:g} GB x {config.memory_utilisation:g} do not hold "
            f"{config.parameters * config.weight_bytes / 1e9:.4g} GB of weights",
            field="memory_gb",
            remedy="give more memory or fewer weight_bytes",
        )
    return tokens


def roofline(
    config: RooflineConfig, max_running: int, max_batched_tokens: int, kv_capacity_tokens: int
) -> Roofline:
    """Return the affine iteration times nearest (in relative error) to max(memory time, compute time).

    Per iteration over t tokens, of which the attention reads S cached ones and squares Q:
    memory = (weights + 24 hidden layers t + KV bytes x S) / bandwidth, compute = (2 parameters t + 2 layers
    hidden (Q + 2 S)) / FLOP/s, each over its efficiency (Williams et al., "Roofline", CACM 2009;
    attention costs 4 layers hidden per pair of tokens, and a causal prompt of c has c^2 / 2 of them).

    Args:
      config: model and hardware.
      max_running: largest batch of the grid.
      max_batched_tokens: longest prompt of the grid.
      kv_capacity_tokens: most context of the grid.
    """
    grid = _grid(config, max_running, max_batched_tokens, kv_capacity_tokens)
    design = iteration_design(grid)
    value = solve(design / grid.duration_s[:, None], np.ones(len(design)), {})
    unknown = np.full((len(COEFFICIENTS), len(COEFFICIENTS)), np.nan)
    return Roofline(CoefficientFit(value, unknown), iteration_quality(grid, design @ value), grid)


def iteration_bound_s(
    config: RooflineConfig, tokens: np.ndarray, context: np.ndarray, squares: np.ndarray
) -> np.ndarray:
    """Return the seconds of iterations by the roofline of :func:`roofline`, of the shape of the arguments."""
    activations = ACTIVATIONS_PER_HIDDEN * config.hidden_size * config.layers * config.weight_bytes
    moved = config.parameters * config.weight_bytes + activations * tokens
    moved = moved + config.kv_bytes_per_token * context
    attended = 2.0 * config.layers * config.hidden_size * (squares + 2.0 * context)
    memory_s = moved / (config.bandwidth_gb_per_s * 1e9 * config.bandwidth_efficiency)
    computed = 2.0 * config.parameters * tokens + attended
    return config.overhead_s + np.maximum(
        memory_s, computed / (config.tflop_per_s * 1e12 * config.compute_efficiency)
    )


def _grid(
    config: RooflineConfig, max_running: int, max_batched_tokens: int, kv_capacity_tokens: int
) -> IterationLog:
    """Return decode iterations over batch and context, and prefill iterations over one prompt's length."""

    def spaced(low: float, high: float) -> np.ndarray:
        return np.unique(np.round(np.geomspace(low, max(high, low + 2), POINTS)).astype(np.int64))

    batch, per_request = (
        axis.ravel() for axis in np.meshgrid(spaced(1, max_running), spaced(16, max_batched_tokens))
    )
    context = batch * per_request
    fits = context <= max(kv_capacity_tokens, 64)
    batch, context = batch[fits], context[fits]
    prompt = spaced(1, max_batched_tokens)
    none = np.zeros(len(prompt), np.int64)
    decode, prefill = np.zeros(len(batch), np.int64), prompt
    tokens = np.concatenate([batch, prompt]).astype(np.float64)
    all_context = np.concatenate([context, none])
    squares = np.concatenate([decode, prompt**2]).astype(np.float64)
    return IterationLog(
        batch=np.concatenate([batch, none]),
        prefill_tokens=np.concatenate([decode, prefill]),
        prefill_tokens_sq=squares,
        context_tokens=all_context,
        duration_s=iteration_bound_s(config, tokens, all_context.astype(np.float64), squares),
        file="roofline",
    )
