"""What several layouts share: requests without an answer, shared prefixes, counts of server and client."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qos_jax.errors import input_error
from qos_jax.logs.layout import Texts
from qos_jax.logs.logged import Logged

CACHED = "cached_tokens"  # a column: of the prompt, found in a prefix cache
_LOST = "what requests aborted before their first token loaded the server with is not known"


def with_cause(logged: Logged, bad: npt.NDArray[np.bool_], cause: str) -> Logged:
    """Return the requests, those where ``bad`` [R] holds left out for ``cause`` unless they are already."""
    return dataclasses.replace(logged, cause=np.where(bad & logged.is_answered, cause, logged.cause))


def with_notes(logged: Logged, *notes: str) -> Logged:
    """Return the requests with further notes; empty ones are dropped."""
    return dataclasses.replace(logged, notes=(*logged.notes, *(note for note in notes if note)))


def drop_failed(logged: Logged, texts: Texts) -> Logged:
    """Leave out the requests of a recorded trace that have no prompt or no output token."""
    del texts
    lengths = [logged.values[name] for name in ("prompt_tokens", "output_tokens") if name in logged.values]
    return with_cause(logged, np.any([length == 0 for length in lengths], axis=0), "failed")


def drop_aborted(logged: Logged, texts: Texts) -> Logged:
    """Leave out the requests without an output token; others keep the tokens that they got.

    A request aborted later is kept as one that asked for the tokens it got: that is its load on the server.
    """
    del texts
    if "output_tokens" not in logged.values:
        return logged
    no_token = ~(logged.values["output_tokens"] > 0)  # NaN is none either
    return with_lost(with_cause(logged, no_token, "aborted"))


def with_lost(logged: Logged) -> Logged:
    """Return the requests with a note on those aborted before their first token, if there are any."""
    return with_notes(logged, _LOST if "aborted" in logged.left_out else "")


def reused_note(prompt_tokens: npt.NDArray[np.float64], reused_tokens: npt.NDArray[np.float64]) -> str:
    """Return a note on prompt tokens that a prefix cache saves and the simulator does not; "" if none.

    Args:
      prompt_tokens: [R] tokens, NaN unknown.
      reused_tokens: [R] tokens of each prompt that were computed before.
    """
    total = np.nansum(prompt_tokens)
    share = np.nansum(reused_tokens) / total if total else 0.0
    if not share > 0:
        return ""
    return f"shared prefixes are not simulated: they are {100 * share:.3g}% of the prompt tokens"


def with_reuse(logged: Logged, texts: Texts) -> Logged:
    """Return the requests with a note on prompt tokens that were found in a prefix cache, where any were.

    Raises:
      InputError: naming the row of a number of cached tokens that is none.
    """
    if CACHED not in texts:
        return logged
    found = np.zeros(len(logged.row))
    for at, text in enumerate(texts[CACHED]):
        try:
            found[at] = float(text or 0)
        except ValueError:
            raise input_error(
                f"{text[:40]!r} is no number",
                file=logged.file,
                row=int(logged.row[at]),
                field=CACHED,
                remedy="give tokens, or nothing",
            ) from None
    kept = logged.is_answered
    return with_notes(logged, reused_note(logged.values["prompt_tokens"][kept], found[kept]))


def servers_note(workers: Sequence[str], what: str) -> str:
    """Return a note if the requests went to several servers; "" for one or an unknown number."""
    count = len({worker for worker in workers if worker})
    return f"holds requests of {count} {what}; a profile is of one" if count > 1 else ""


def with_usage(logged: Logged, name: str, counts: Sequence[Sequence[float | None]]) -> Logged:
    """Return the requests with token counts, the server's where it gave one, and a note on which was taken.

    Args:
      logged: R requests.
      name: ``prompt_tokens`` or ``output_tokens``.
      counts: R pairs, by the server's usage and by the client's tokenizer; None: not counted.
    """
    pairs = [[np.nan if count is None else float(count) for count in pair] for pair in counts]
    server, client = np.array(pairs, np.float64).reshape(-1, 2).T
    both = logged.is_answered & ~np.isnan(server) & ~np.isnan(client)
    if np.isnan(server[logged.is_answered]).all():
        note = f"{name}: the client tokenizer's count, as the file has none of the server's"
    elif np.array_equal(server[both], client[both]):
        note = f"{name}: the server's usage"
    else:
        means = f"{np.mean(client[both]):.4g} where the server says {np.mean(server[both]):.4g}"
        note = f"{name}: the server's usage; the client's tokenizer counts {means}"
    values = {**logged.values, name: np.where(np.isnan(server), client, server)}
    return with_notes(dataclasses.replace(logged, values=values), note)


def nested(
    layout: str, file: str, rows: Sequence[dict[str, float | str | None]], fields: dict[str, str]
) -> Logged:
    """Return requests that were picked out of nested objects.

    Args:
      layout: name of the layout.
      file: its path.
      rows: R mappings of ``row``, ``cause`` and quantities of ``units.KNOWN``; None and missing are NaN.
      fields: the file's name of each quantity, for errors.
    """

    def column(name: str) -> npt.NDArray[np.float64]:
        return np.array([np.nan if (v := row.get(name)) is None else float(v) for row in rows], np.float64)

    return Logged(
        file=file,
        layout=layout,
        row=np.array([row["row"] for row in rows], np.int64),
        values={name: column(name) for name in fields},
        cause=np.array([row.get("cause") or "" for row in rows], object),
        fields={ours: (theirs, "s") for ours, theirs in fields.items()},
    )
