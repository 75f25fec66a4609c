"""Read the upstreams of a fleet: each expert's server, its model, and what to expect of its answers."""

from __future__ import annotations

import dataclasses
import os
import urllib.parse

import numpy as np

from qos_jax import text_table
from qos_jax.checks import SHARE, Interval
from qos_jax.errors import input_error, near_match
from qos_jax.files import Path

COLUMNS = ("expert", "url")
# An empty cell is as if the column were not there.
OPTIONAL = ("model", "api_key_env", "quality", "output_tokens", "length_log_std")
_LENGTH_LOG_STD = 0.6  # std of log output tokens of an expert of which nothing is said
_TOKENS = Interval(1, 2.0**24)
_LOG_STD = Interval(0, 5)


@dataclasses.dataclass(frozen=True)
class Upstream:
    """The server of one expert."""

    expert: str  # its name in the fleet
    url: str  # http://HOST:PORT, and a path before /v1 if there is one; no slash at its end
    model: str  # what the server calls its model
    api_key: str | None  # sent to it as a bearer token
    quality: float | None  # mean in [0, 1] of its answers, if given
    output_tokens: float | None  # median, if given
    length_log_std: float  # std of log output tokens about it


def read_upstreams(path: Path, experts: tuple[str, ...]) -> tuple[Upstream, ...]:
    """Read a CSV file with a row for each expert of the fleet, in any order.

    Args:
      path: columns ``COLUMNS`` and, if wished, ``OPTIONAL``; ``api_key_env`` names an environment variable.
      experts: N names, the order of what is returned.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    table = text_table.read_small(path, COLUMNS, optional=OPTIONAL)
    found: dict[str, Upstream] = {}
    for at, expert in enumerate(table.columns["expert"]):
        if expert not in experts:
            fault = f"{expert!r} is no expert of the fleet{near_match(expert, experts)}"
            raise text_table.cell_error(table, "expert", at, fault, f"use one of {', '.join(experts)}")
        if expert in found:
            raise text_table.cell_error(table, "expert", at, f"{expert!r} appears twice", "give each one row")
        found[expert] = _upstream(table, at)
    if missing := [expert for expert in experts if expert not in found]:
        fault = f"no row for the expert {missing[0]!r}"
        raise input_error(fault, file=path, field="expert", remedy="give every expert of the fleet one row")
    return tuple(found[expert] for expert in experts)


def _upstream(table: text_table.TextTable, at: int) -> Upstream:
    def cell(name: str) -> str:
        return table.columns[name][at] if name in table.columns else ""

    def number(name: str, allowed: Interval) -> float | None:
        if not cell(name):
            return None
        try:
            value = float(cell(name))
        except ValueError:
            raise text_table.cell_error(
                table, name, at, f"{cell(name)!r} is no number", f"give {allowed}"
            ) from None
        if value not in allowed:
            raise text_table.cell_error(table, name, at, f"{value} is out of range", f"give {allowed}")
        return value

    api_key = None
    if variable := cell("api_key_env"):
        api_key = os.environ.get(variable)
        if not api_key:
            remedy = f"run: export {variable}=KEY, or leave the cell empty"
            raise text_table.cell_error(table, "api_key_env", at, f"${variable} is not set", remedy)
    log_std = number("length_log_std", _LOG_STD)
    return Upstream(
        expert=cell("expert"),
        url=_checked_url(table, at, cell("url")),
        model=cell("model") or cell("expert"),
        api_key=api_key,
        quality=number("quality", SHARE),
        output_tokens=number("output_tokens", _TOKENS),
        length_log_std=_LENGTH_LOG_STD if log_std is None else log_std,
    )


def _checked_url(table: text_table.TextTable, at: int, url: str) -> str:
    """Return the URL without what clients often add to it."""
    remedy = "write http://HOST:PORT, without /v1"
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None:
        raise text_table.cell_error(table, "url", at, f"{url!r} is no URL of a server", remedy)
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def expected_answers(
    upstreams: tuple[Upstream, ...], file: Path, figures: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the quality and the median output tokens to expect of each expert, [N] float32 each.

    Args:
      upstreams: of N experts.
      file: they are of, for the error.
      figures: quality and output tokens [N] of the fleet's models where these are known, else None.

    Raises:
      InputError: neither the file nor the figures say.
    """
    columns = []
    for name, at in (("quality", 0), ("output_tokens", 1)):
        given = [getattr(upstream, name) for upstream in upstreams]
        if figures is None and None in given:
            fault = f"nothing is known of the answers of {upstreams[given.index(None)].expert!r}"
            remedy = "add the columns quality (0 to 1) and output_tokens, or give --predictor=FILE"
            raise input_error(fault, file=file, field=name, remedy=remedy)
        known = (
            given
            if figures is None
            else [
                figure if value is None else value for value, figure in zip(given, figures[at], strict=True)
            ]
        )
        columns.append(np.array(known, np.float32))
    return columns[0], columns[1]
