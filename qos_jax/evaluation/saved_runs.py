"""Keep what each policy of a comparison did on disk, so that a stopped comparison goes on where it was."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from qos_jax.files import atomic_write
from qos_jax.runs.folder import RunFolder, to_json
from qos_jax.simulation.cases import Case
from qos_jax.simulation.metrics import ALL_METRICS, METRICS
from qos_jax.simulation.policy_runs import UPPER_BOUND, CaseName, PolicyResult, PolicyRun
from qos_jax.simulation.records import OPTIONAL, RequestRecords
from qos_jax.simulation.simulate import Runs
from qos_jax.workload.named import SESSIONS

_FROM_CASE = ("arrival_s", "prompt_tokens")  # the same for every policy, so not stored but of sessions
_FIELDS = tuple(field.name for field in dataclasses.fields(RequestRecords))


def save_policy_run(folder: RunFolder, run: PolicyRun) -> None:
    """Write ``records/POLICY.npz``, where records are kept, then the policy's lines of ``metrics.jsonl``.

    In this order and each in one piece, so that the lines of all cases say that the policy is complete.
    """
    if run.records:
        arrays = {
            f"{place}.{name}": getattr(records, name)
            for place, (case, records) in enumerate(run.records.items())
            for name in _FIELDS
            if getattr(records, name) is not None and (name not in _FROM_CASE or case[0] == SESSIONS)
        }
        with atomic_write(folder.file(f"records/{run.policy}.npz"), "wb") as stream:
            np.savez_compressed(stream, **arrays)
    folder.append_metrics(*(dataclasses.asdict(result) for result in run.results))


def load_policy_runs(
    folder: RunFolder, cases: Sequence[Case], keep_records: Collection[CaseName]
) -> dict[str, PolicyRun]:
    """Return the complete policies in the folder of a comparison of these cases, and forget the others.

    The lines of incomplete policies are removed from ``metrics.jsonl``, which is else left as it is.
    """
    lines: dict[str, dict[CaseName, dict[str, Any]]] = {}
    everything = folder.read_metrics()
    for line in everything:
        if line.keys() == {field.name for field in dataclasses.fields(PolicyResult)}:
            mine = lines.setdefault(line["policy"], {})
            mine[line["workload"], line["arrival_rate_per_s"]] = line
    kept_cases = [case for case in cases if case.name in keep_records]
    runs = {}
    for name, by_case in lines.items():
        results = [_result(by_case.get(case.name)) for case in cases]
        records = {} if name == UPPER_BOUND else _load_records(folder, name, kept_cases)
        if records is not None and all(results):
            runs[name] = PolicyRun(name, [result for result in results if result], records)
    complete = [to_json(dataclasses.asdict(result)) for run in runs.values() for result in run.results]
    if complete != everything:
        folder.replace_metrics(complete)
    return runs


def _result(line: Mapping[str, Any] | None) -> PolicyResult | None:
    """Return the result of a line of ``metrics.jsonl``, None if it is not whole."""
    if line is None or not METRICS.keys() <= line["metrics"].keys() <= ALL_METRICS.keys():
        return None
    numbers = {name: np.array(values, np.float64) for name, values in line["metrics"].items()}  # null: NaN
    limit_s = math.inf if line["latency_limit_s"] is None else line["latency_limit_s"]
    return PolicyResult(**{**line, "latency_limit_s": limit_s, "metrics": numbers})


def _load_records(
    folder: RunFolder, policy: str, cases: Sequence[Case]
) -> dict[CaseName, RequestRecords] | None:
    """Return a policy's records of the cases, None if they are missing or not readable."""
    if not cases:
        return {}
    records = {}
    try:
        path = folder.file(f"records/{policy}.npz")
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            for place, case in enumerate(cases):
                held = {name: arrays[f"{place}.{name}"] for name in _FIELDS if f"{place}.{name}" in arrays}
                if isinstance(case.runs, Runs):
                    held["arrival_s"] = case.runs.arrival_s
                    held["prompt_tokens"] = np.asarray(case.runs.requests.prompt_tokens)
                if {*_FIELDS} - held.keys() - {*OPTIONAL}:
                    return None
                records[case.name] = RequestRecords(**held)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return records
