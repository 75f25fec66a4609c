"""Texts whose answers follow a rule: some word says how hard a prompt is and how long its answers get."""

import dataclasses

import numpy as np

EXPERTS = ("ant", "bee", "cat")


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    prompts: list[str]
    hard: np.ndarray  # [M] bool: the text has the word "prove"
    quality: np.ndarray  # [M, N]
    output_tokens: np.ndarray  # [M, N]

    def take(self, rows: np.ndarray) -> "Texts":
        prompts = [self.prompts[row] for row in rows]
        return Texts(prompts, self.hard[rows], self.quality[rows], self.output_tokens[rows])


def make_texts(rows: int, seed: int = 0, missing: float = 0.05) -> Texts:
    """An answer to a hard prompt is right with probability 0.1, else 0.9; it is 4 times as long."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{number}" for number in range(30)])
    hard = rng.random(rows) < 0.5
    prompts = [
        " ".join([*rng.choice(words, 8), "prove" if is_hard else "name", *rng.choice(words, 3)])
        for is_hard in hard
    ]
    shape = (rows, len(EXPERTS))
    quality = (rng.random(shape) < np.where(hard, 0.1, 0.9)[:, None]).astype(np.float64)
    median = np.where(hard, 400.0, 100.0)[:, None] * np.array([1.0, 1.5, 0.5])
    output_tokens = np.maximum(np.round(median * np.exp(0.2 * rng.standard_normal(shape))), 1).astype(
        np.int64
    )
    quality[rng.random(shape) < missing] = np.nan
    output_tokens[rng.random(shape) < missing] = -1
    return Texts(prompts, hard, quality, output_tokens)
