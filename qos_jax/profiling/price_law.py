"""What the time of an iteration is linear in: affine decoding, or a table of decode times by batch size."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PREFILL = ("prefill_base_s", "prefill_per_token_s", "prefill_per_token_sq_s")
DECODE = ("decode_base_s", "decode_per_seq_s", "decode_per_context_token_s")
COEFFICIENTS = (*PREFILL, *DECODE)  # of the affine law, in the order of its arrays [C], C = 6


@dataclasses.dataclass(frozen=True)
class PriceLaw:
    """The coefficients of an iteration's time; all are >= 0.

    The affine law has the six ``COEFFICIENTS``. With ``batches`` the last three make way for a table: the
    seconds of decoding at the first batch size and their rise from each to the next, and the seconds per
    context token at each. Between two sizes both are linear (serving/README.md, rule 4).
    """

    batches: tuple[int, ...] = ()  # batch sizes of the table, rising from 1; none = affine
    one_context: bool = False  # of a table: one price of context for all sizes

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the C coefficients."""
        if not self.batches:
            return COEFFICIENTS
        rises = (f"decode_rise_{low}_to_{high}_s" for low, high in itertools.pairwise(self.batches))
        contexts = [f"decode_at_{batch}_per_context_token_s" for batch in self.batches]
        if self.one_context:
            contexts = [DECODE[-1]]
        return (*PREFILL, f"decode_at_{self.batches[0]}_s", *rises, *contexts)

    def rows(
        self,
        batch: npt.ArrayLike,
        context_tokens: npt.ArrayLike,
        prompt_tokens: npt.ArrayLike,
        prompt_tokens_sq: npt.ArrayLike,
    ) -> Array:
        """Return the rows [R, C] whose product with the coefficients is the seconds of each iteration.

        An affine decode iteration is ``decode_base_s + decode_per_seq_s * B + decode_per_context_token_s *
        S``; one with T > 0 prompt tokens is ``prefill_base_s + prefill_per_token_s * (T + B) +
        prefill_per_token_sq_s * Q`` and the same price of S (B = S = 0 but under chunked prefill): see
        serving/README.md, rules 3, 4 and 8.

        Args:
          batch: [R] requests that decode, B.
          context_tokens: [R] tokens, sum of their contexts, S.
          prompt_tokens: [R] tokens of the prompts in it, T.
          prompt_tokens_sq: [R] tokens^2, sum over its chunks of (done + chunk)^2 - done^2, Q.
        """
        b, s, t, q = (
            np.asarray(x, np.float64) for x in (batch, context_tokens, prompt_tokens, prompt_tokens_sq)
        )
        prefill = (t > 0).astype(np.float64)
        decode = 1.0 - prefill
        columns = [prefill, prefill * (t + b), q, decode]
        if not self.batches:
            return np.stack([*columns, decode * b, s], axis=-1)
        last = len(self.batches) - 2
        for at, (low, high) in enumerate(itertools.pairwise(self.batches)):
            share = np.clip((b - low) / (high - low), 0.0, np.inf if at == last else 1.0)
            columns.append(decode * share)
        if self.one_context:
            return np.stack([*columns, s], axis=-1)
        for at in range(len(self.batches)):
            columns.append(s * np.interp(b, self.batches, np.arange(len(self.batches)) == at))
        return np.stack(columns, axis=-1)

    def knots(self, value: npt.ArrayLike) -> tuple[tuple[float, float, float], ...]:
        """Return (batch, seconds, seconds / context token) of each batch size; none if affine."""
        if not self.batches:
            return ()
        theta = np.asarray(value, np.float64)
        start = len(PREFILL)
        fixed_s = np.cumsum(theta[start : start + len(self.batches)])
        per_token_s = np.broadcast_to(theta[start + len(self.batches) :], len(self.batches))
        return tuple(zip(self.batches, fixed_s.tolist(), per_token_s.tolist(), strict=True))

    def affine(self, value: npt.ArrayLike) -> dict[str, float]:
        """Return the ``COEFFICIENTS`` by name; beside a table, those of decoding only stand in for it."""
        theta = np.asarray(value, np.float64)
        if self.batches:
            (_, first_s, _), *_, (size, all_s, per_token_s) = self.knots(theta)
            decode = [first_s, (all_s - first_s) / (size - 1), per_token_s]
            theta = np.concatenate([theta[: len(PREFILL)], decode])
        return dict(zip(COEFFICIENTS, theta.tolist(), strict=True))

    def from_affine(self, value: npt.ArrayLike) -> Array:
        """Return the coefficients [C] with which the law is the affine one of ``value`` [6]."""
        theta = np.asarray(value, np.float64)
        if not self.batches:
            return theta
        base_s, per_seq_s, per_token_s = theta[len(PREFILL) :]
        rises = [per_seq_s * (high - low) for low, high in itertools.pairwise(self.batches)]
        at_first = base_s + per_seq_s * self.batches[0]
        contexts = [per_token_s] * (1 if self.one_context else len(self.batches))
        return np.array([*theta[: len(PREFILL)], at_first, *rises, *contexts])


AFFINE = PriceLaw()
