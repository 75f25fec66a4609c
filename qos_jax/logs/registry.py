"""The registry of layouts: recognise a file of requests by its fields, and read it."""

from __future__ import annotations

from collections.abc import Mapping

from qos_jax.errors import InputError, input_error
from qos_jax.files import Path
from qos_jax.logs.aiperf import AIPERF
from qos_jax.logs.clients import LLAMA_CPP, MULTI_ROUND_QA
from qos_jax.logs.dynamo import DYNAMO
from qos_jax.logs.generic import GENERIC
from qos_jax.logs.guidellm import GUIDELLM
from qos_jax.logs.inference_perf import INFERENCE_PERF
from qos_jax.logs.layout import read_columns
from qos_jax.logs.logged import Logged
from qos_jax.logs.sglang import SGLANG_BENCH
from qos_jax.logs.simulators import LLMSERVINGSIM, VIDUR_METRICS
from qos_jax.logs.source import Source, open_source
from qos_jax.logs.traces import AZURE, BURSTGPT, LLMSERVINGSIM_WORKLOAD, MOONCAKE, SPLITWISE, VIDUR_TRACE
from qos_jax.logs.units import KNOWN, our_names, split_unit
from qos_jax.logs.vllm import VLLM_BENCH, VLLM_REQUESTS

# The first that fits is taken: one whose fields are also another's comes before it.
LAYOUTS = (
    SGLANG_BENCH,
    VLLM_BENCH,
    VLLM_REQUESTS,
    AIPERF,
    GUIDELLM,
    INFERENCE_PERF,
    DYNAMO,
    LLMSERVINGSIM,
    VIDUR_METRICS,
    LLAMA_CPP,
    MULTI_ROUND_QA,
    AZURE,
    BURSTGPT,
    MOONCAKE,
    SPLITWISE,
    VIDUR_TRACE,
    LLMSERVINGSIM_WORKLOAD,
    GENERIC,
)
MAX_ERROR = 400  # characters of the answer to a file of no known layout


def read_logged(path: Path, columns: Mapping[str, str] | None = None) -> Logged:
    """Return the requests of a file of any known layout, recognised by its fields.

    Args:
      path: CSV, JSON lines or a JSON document, gzipped if its name ends in ``.gz``.
      columns: the file's name of a column, with or without ``:unit``, by ours (``units.KNOWN``); None: the
        user cannot map any.

    Raises:
      InputError: no known layout, or naming file, row, field and remedy of the first fault found.
    """
    source = open_source(path)
    layout = next((layout for layout in LAYOUTS[:-1] if not layout.missing(source)), None)
    if layout is not None and layout.read is not None and columns:
        fault = f"the fields of the {layout.name} are known"
        raise input_error(fault, file=path, field="column", remedy="leave out --column")
    if layout is None and not columns and _lacks_generic(source):
        raise _unknown(source, can_map=columns is not None)
    layout = layout or GENERIC
    try:
        return layout.read(source) if layout.read else read_columns(layout, source, columns or {})
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        fault = f"is not as the {layout.name} is written ({' '.join(str(error).split())[:80]})"
        raise input_error(fault, file=path, remedy="give the file as the tool wrote it") from error


def columns_of(path: Path, columns: Mapping[str, str]) -> dict[str, str]:
    """Return those of a user's mappings, of several files, whose column this file has.

    A file of a layout whose fields are all known takes none.

    Args:
      path: see :func:`read_logged`.
      columns: see :func:`read_logged`.

    Raises:
      InputError: the file cannot be read, or is neither CSV nor JSON.
    """
    source = open_source(path)
    layout = next((layout for layout in LAYOUTS[:-1] if not layout.missing(source)), None)
    if layout is not None and layout.read is not None:
        return {}
    return {
        ours: theirs
        for ours, theirs in columns.items()
        if theirs in source.fields or split_unit(theirs)[0].partition(".")[0] in source.fields
    }


def has_layout(path: Path) -> bool:
    """Return whether a file can be read and its fields are those of a tool or a public trace, not our own."""
    try:
        source = open_source(path)
    except InputError:
        return False
    return bool(_lacks_generic(source)) and any(not layout.missing(source) for layout in LAYOUTS[:-1])


def _lacks_generic(source: Source) -> list[str]:
    found = our_names(source.file, source.fields, {}, KNOWN, GENERIC.columns)
    return [name for name in GENERIC.needs if name not in found]


def _unknown(source: Source, can_map: bool) -> InputError:
    """Return the error for a file of no known layout: its fields, the nearest layout, and all layouts."""
    lacks = {layout: layout.missing(source) for layout in LAYOUTS[:-1]} | {GENERIC: _lacks_generic(source)}
    nearest = min(lacks, key=lambda layout: (len(lacks[layout]) / len(layout.needs), layout is not GENERIC))
    fields = ", ".join(source.fields)
    known = ", ".join(dict.fromkeys(layout.name.partition(" ")[0] for layout in LAYOUTS))
    if source.is_document and not source.is_csv and any(isinstance(v, list | dict) for v in _values(source)):
        fault = f"one JSON document of no known layout: it has {fields}"
    else:
        fault = f"of no known layout: it has {fields}"
    near = f"; {nearest.name} comes nearest, but lacks {', '.join(lacks[nearest])}"
    ours = "map columns, as --column=arrival_s=THEIRS:ms" if can_map else f"name {', '.join(GENERIC.needs)}"
    remedy = f"{ours}, or give one of "
    room = MAX_ERROR - len(source.file) - len(near) - len(remedy) - 4
    fault = _cut(fault, max(room - len(known), 60))
    return input_error(fault + near, file=source.file, remedy=remedy + _cut(known, room - len(fault)))


def _values(source: Source) -> list[object]:
    return [value for _, record in source.records() for value in record.values()]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: max(length - 4, 0)].rpartition(',')[0]} ..."
