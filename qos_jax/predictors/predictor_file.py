"""Save fitted predictors as .npz files and load them, checked.

The arrays of a file of version 3, for N experts, B length buckets, F columns of n-grams, K components,
E = 384 numbers of a sentence embedding, S surface features, D = K + E + S; of K and E what the encoder has:

    version                   []         integer, 3
    config                    []         text, the fields of PredictorConfig as JSON
    experts                   [N]        text, unique names, the order of every N axis
    bucket_edges_tokens       [B + 1]    tokens, rising, > 0
    length_log_std            [N]        std of log(true) - log(predicted median) on validation rows
    feature_mean, feature_std [D]        what features are centred and scaled by; std > 0
    ngram_columns             [F]        integer, rising, the columns used         (encoder with n-grams)
    ngram_rarity              [F]        their weights                              (encoder with n-grams)
    ngram_components          [F, K]     float16, the projection                    (encoder with n-grams)

and for each head, their names after head0/, head1/ and so on:

    quality_scale, quality_shift, length_sharpness  [N]  calibration; scale and sharpness > 0
    ridge_weights             [F + E + S, 2 N] of quality, then of log tokens     (if the head reads a ridge)
    ridge_bias, ridge_mean, ridge_std  [2 N]  std > 0                         (if the head reads a ridge)
    body/...                             the networks' parameters by their names in flax, members first; or
                                         the rows and answers that the head "neighbours" looks among
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from qos_jax.checks import check_names
from qos_jax.errors import InputError, input_error
from qos_jax.files import Path, atomic_write, read_npz
from qos_jax.predictors.calibration import Calibration
from qos_jax.predictors.config import PredictorConfig
from qos_jax.predictors.encoders import SURFACE_FEATURES, Encoder, text_size
from qos_jax.predictors.heads import Head
from qos_jax.predictors.minilm import MINILM_SIZE
from qos_jax.predictors.neighbours import Neighbours
from qos_jax.predictors.networks import Targets, network_of
from qos_jax.predictors.ngrams import NgramEncoder, hashed_columns
from qos_jax.predictors.predictor import Predictor
from qos_jax.predictors.ridge import Ridge, uses_ridge

VERSION = 3

_BODY = "body/"
_RIDGE = "ridge_"
_RIDGE_FIELDS = tuple(field.name for field in dataclasses.fields(Ridge))
_CALIBRATION = tuple(field.name for field in dataclasses.fields(Calibration))
# By the last part of an array's name.
_POSITIVE = ("feature_std", "ridge_std", "quality_scale", "length_sharpness", "bucket_edges_tokens")
_REMEDY = "write it with qos_jax.predictors.save_predictor of this version"


def save_predictor(path: Path, predictor: Predictor) -> None:
    """Write a predictor so that :func:`load_predictor` returns it again, bit for bit; whole or not at all."""
    arrays: dict[str, Any] = {
        "version": np.int32(VERSION),
        "config": np.array(json.dumps(dataclasses.asdict(predictor.config))),
        "experts": np.array(predictor.experts, np.str_),
        "bucket_edges_tokens": predictor.bucket_edges_tokens,
        "length_log_std": predictor.length_log_std,
        "feature_mean": predictor.encoder.mean,
        "feature_std": predictor.encoder.std,
    }
    ngrams = predictor.encoder.ngrams
    if ngrams is not None:
        arrays |= {"ngram_columns": ngrams.columns, "ngram_rarity": ngrams.rarity}
        arrays |= {"ngram_components": ngrams.components.astype(np.float16)}
    for number, head in enumerate(predictor.heads):
        arrays |= {_head(number) + name: values for name, values in _arrays_of(head).items()}
    with atomic_write(path, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_predictor(path: Path) -> Predictor:
    """Read a predictor from a file of the schema above.

    Raises:
      InputError: naming file, array and remedy of the first fault found: no such file, no .npz, another
        version, an array missing, unknown, of the wrong kind or shape, a value that is not finite or out of
        range, a configuration or a name that is none.
    """
    arrays = read_npz(path, remedy=_REMEDY)
    file = _File(str(path), arrays)
    file.check_version()
    config = file.config()
    experts = file.experts()
    n = len(experts)
    columns = int(arrays["ngram_columns"].size) if "ngram_columns" in arrays else 0
    width = text_size(config) + SURFACE_FEATURES
    shapes: dict[str, tuple[int, ...]] = {
        "bucket_edges_tokens": (config.buckets + 1,),
        "length_log_std": (n,),
        "feature_mean": (width,),
        "feature_std": (width,),
    }
    if config.uses_ngrams:
        shapes |= {"ngram_columns": (columns,), "ngram_rarity": (columns,)}
        shapes |= {"ngram_components": (columns, config.components)}
    whole = {"ngram_columns"}
    text = columns + MINILM_SIZE * config.uses_minilm
    bodies = []
    for number in range(config.heads):
        prefix = _head(number)
        shapes |= dict.fromkeys((prefix + name for name in _CALIBRATION), (n,))
        if uses_ridge(config):
            shapes |= dict.fromkeys((prefix + _RIDGE + name for name in _RIDGE_FIELDS), (2 * n,))
            shapes |= {prefix + _RIDGE + "weights": (text + SURFACE_FEATURES, 2 * n)}
        body = _body_shapes(config, n, arrays.get(f"{prefix}{_BODY}embedding"))
        shapes |= {prefix + _BODY + name: leaf.shape for name, leaf in body.items()}
        whole |= {prefix + _BODY + name for name, leaf in body.items() if leaf.dtype == np.int32}
        bodies.append(body)
    read = file.read(shapes, whole)
    file.check_rising(read["bucket_edges_tokens"], "bucket_edges_tokens")
    ngrams = None
    if config.uses_ngrams:
        file.check_rising(read["ngram_columns"], "ngram_columns")
        file.check_range(read["ngram_columns"], "ngram_columns", 0, hashed_columns(config) - 1)
        ngrams = NgramEncoder(config, read["ngram_columns"], read["ngram_rarity"], read["ngram_components"])
    heads = []
    for number, body in enumerate(bodies):
        prefix = _head(number)
        ridge = None
        if uses_ridge(config):
            ridge = Ridge(**{name: read[prefix + _RIDGE + name] for name in _RIDGE_FIELDS})
        if config.head == "neighbours":
            bucket = f"{prefix}{_BODY}bucket"
            file.check_range(read[bucket], bucket, 0, config.buckets - 1)
        whole_body = _whole_body(config, {name: read[prefix + _BODY + name] for name in body})
        calibration = Calibration(**{name: read[prefix + name] for name in _CALIBRATION})
        heads.append(Head(ridge, whole_body, calibration))
    return Predictor(
        config=config,
        experts=experts,
        encoder=Encoder(ngrams, read["feature_mean"], read["feature_std"]),
        heads=tuple(heads),
        bucket_edges_tokens=read["bucket_edges_tokens"],
        length_log_std=read["length_log_std"],
    )


def _head(number: int) -> str:
    """Return what the names of a head's arrays begin with."""
    return f"head{number}/"


def _arrays_of(head: Head) -> dict[str, Any]:
    """Return a head's arrays by name."""
    arrays = {name: getattr(head.calibration, name) for name in _CALIBRATION}
    if head.ridge is not None:
        arrays |= {_RIDGE + name: getattr(head.ridge, name) for name in _RIDGE_FIELDS}
    return arrays | {_BODY + name: np.asarray(leaf) for name, leaf in _flat_body(head.body).items()}


def _flat_body(body: Any) -> dict[str, Any]:
    """Return the arrays of a head's body by name."""
    if isinstance(body, Neighbours):
        own = {name: getattr(body, name) for name in ("embedding", "mean_quality", "bucket_share")}
        targets = {field.name: getattr(body.targets, field.name) for field in dataclasses.fields(Targets)}
        return own | targets
    return traverse_util.flatten_dict(body["params"], sep="/")


def _whole_body(config: PredictorConfig, flat: Mapping[str, np.ndarray]) -> Any:
    """Return the body of arrays by name."""
    if config.head == "neighbours":
        rest = dict(flat)
        targets = {field.name: rest.pop(field.name) for field in dataclasses.fields(Targets)}
        leaves: dict[str, Any] = {"targets": Targets(**targets), **rest}
        return Neighbours(**leaves)
    return {"params": traverse_util.unflatten_dict(dict(flat), sep="/")}


def _body_shapes(
    config: PredictorConfig, experts: int, embedding: np.ndarray | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and kind of every array of a body; ``embedding``, if there is one, says how many rows."""
    if config.head == "neighbours":
        rows = 0 if embedding is None or not embedding.ndim else embedding.shape[0]
        each, whole = (rows, experts), jax.ShapeDtypeStruct((rows, experts), np.int32)
        shapes = {
            "embedding": (rows, text_size(config)),
            "mean_quality": (experts,),
            "bucket_share": (experts, config.buckets),
            "quality": each,
            "quality_weight": each,
            "bucket_weight": each,
        }
        return {k: jax.ShapeDtypeStruct(shape, np.float32) for k, shape in shapes.items()} | {"bucket": whole}
    width = text_size(config) + SURFACE_FEATURES + (2 * experts if uses_ridge(config) else 0)
    one = jax.ShapeDtypeStruct((1, width), np.float32)
    params = jax.eval_shape(network_of(config, experts).init, jax.random.key(0), one)["params"]
    flat = traverse_util.flatten_dict(params, sep="/")
    return {k: jax.ShapeDtypeStruct((config.members, *leaf.shape), leaf.dtype) for k, leaf in flat.items()}


@dataclasses.dataclass(frozen=True)
class _File:
    """The arrays of a file, and the errors that name it."""

    path: str
    arrays: Mapping[str, np.ndarray]

    def fault(self, fault: str, field: str) -> InputError:
        return input_error(fault, file=self.path, field=field, remedy=_REMEDY)

    def array(self, field: str) -> np.ndarray:
        if field not in self.arrays:
            raise self.fault("array is missing", field)
        return self.arrays[field]

    def check_version(self) -> None:
        version = self.array("version")
        if version.shape != () or version.dtype.kind not in "iu" or int(version) != VERSION:
            raise self.fault(f"is {str(version)[:40]!r}, and only {VERSION} is known", "version")

    def config(self) -> PredictorConfig:
        stored = self.array("config")
        if stored.shape != () or stored.dtype.kind != "U":
            raise self.fault(f"is {stored.dtype} of shape {stored.shape}, not a text", "config")
        try:
            fields = json.loads(str(stored))
            if not isinstance(fields, dict):
                raise TypeError("it is no group of fields")
            hidden = {"hidden": tuple(fields["hidden"])} if "hidden" in fields else {}
            return PredictorConfig(**{**fields, **hidden})
        except (ValueError, TypeError) as error:  # InputError is a ValueError
            raise self.fault(f"is no configuration of a predictor ({error})", "config") from None

    def experts(self) -> tuple[str, ...]:
        names = self.array("experts")
        if names.ndim != 1 or names.dtype.kind != "U" or not names.size:
            raise self.fault(f"is {names.dtype} of shape {names.shape}, not a list of names", "experts")
        found = tuple(str(name) for name in names)
        check_names("experts", found, file=self.path)
        return found

    def read(self, shapes: Mapping[str, tuple[int, ...]], whole: set[str]) -> dict[str, np.ndarray]:
        """Return the arrays of these shapes, which are all there are, as int32 or float32."""
        for name in self.arrays:
            if name not in (*shapes, "version", "config", "experts"):
                raise self.fault("array is unknown", name)
        return {name: self._one(name, shape, name in whole) for name, shape in shapes.items()}

    def _one(self, name: str, shape: tuple[int, ...], whole: bool) -> np.ndarray:
        values = self.array(name)
        if values.shape != shape:
            raise self.fault(f"has shape {values.shape}, not {shape}", name)
        if values.dtype.kind not in ("iu" if whole else "f"):
            raise self.fault(f"is {values.dtype}, not {'integers' if whole else 'reals'}", name)
        fine = np.isfinite(values) & ((values > 0) | (name.rpartition("/")[-1] not in _POSITIVE))
        if not fine.all():
            where = np.unravel_index(int(np.argmin(fine)), fine.shape)
            index = ", ".join(str(int(k)) for k in where)
            raise self.fault(f"{values[where]} at {name}[{index}] is out of range", name)
        return values.astype(np.int32 if whole else np.float32)

    def check_rising(self, values: np.ndarray, field: str) -> None:
        if (np.diff(values) <= 0).any():
            raise self.fault("does not rise", field)

    def check_range(self, values: np.ndarray, field: str, low: int, high: int) -> None:
        if values.size and not low <= values.min() <= values.max() <= high:
            raise self.fault(f"has {values.min()} to {values.max()}, outside [{low}, {high}]", field)
