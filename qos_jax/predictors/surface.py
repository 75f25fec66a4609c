"""What a prompt looks like: a handful of numbers that any encoder forgets (its length, its digits, ...)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_COUNTED = ("\n", "?", "\\", "$", "`", "{", "=", ",", ".", '"')
SURFACE_FEATURES = 5 + len(_COUNTED)


def surface_features(prompts: Sequence[str]) -> np.ndarray:
    """Return [M, SURFACE_FEATURES] float32: logs of lengths and counts, shares of kinds of character."""
    rows = np.empty((len(prompts), SURFACE_FEATURES), np.float64)
    for row, prompt in zip(rows, prompts, strict=True):
        size = max(len(prompt), 1)
        digits = sum(map(str.isdigit, prompt))
        capitals = sum(map(str.isupper, prompt))
        letters = sum(map(str.isalpha, prompt))
        row[:5] = len(prompt), len(prompt.split()), digits, capitals, letters
        row[5:] = [prompt.count(mark) for mark in _COUNTED]
        row[4] = row[4] / size
    rows[:, :4] = np.log1p(rows[:, :4])
    rows[:, 5:] = np.log1p(rows[:, 5:])
    return rows.astype(np.float32)
