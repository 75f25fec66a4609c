"""Write the run folder of a request table: table, predictor, paired requests, summaries and plots."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax

from qos_jax.predictors import save_predictor
from qos_jax.runs.folder import RunFolder, open_run_folder, settings_of
from qos_jax.tables.answers.lookahead import ARRAYS, PROMPTS
from qos_jax.tables.answers.rows import TEST
from qos_jax.tables.fitted_table import Prepared
from qos_jax.tables.plots import write_table_plots
from qos_jax.tables.preparation import Preparation
from qos_jax.tables.report import write_reports
from qos_jax.tables.summary import render_summary, summarise_table, write_summary
from qos_jax.workload import (
    NamedTable,
    Requests,
    read_table,
    split_rows,
    table_for_experts,
    write_requests,
    write_table,
)
from qos_jax.workload.drawn_requests import draw_contents
from qos_jax.workload.named_table import SPLITS
from qos_jax.workload.table_rows import NEIGHBOURS, length_ratios

TABLE, PREDICTOR, REQUESTS = "table.npz", "predictor.npz", "requests.csv"


def pair_with_trace(plan: Preparation, named: NamedTable) -> tuple[Requests, tuple[str, ...], dict[str, Any]]:
    """Return the trace's arrivals with a row of the table for each.

    Returns:
      T requests, their experts (the fleet's, if there is one), and the summary's figures of the pairing.
    """
    config, trace = plan.config, plan.trace
    assert trace is not None
    if plan.fleet is not None:
        named = table_for_experts(named, plan.fleet.names)
    named = split_rows(named, config.table_split)
    lengths = trace if config.table_match == "nearest" else None
    keys = jax.random.key(config.trace_seed)[None]
    drawn = draw_contents(keys, named, lengths, trace.num_requests)
    prompt_ratio, output_ratio = length_ratios(drawn, trace.prompt_tokens, trace.output_tokens)
    one = jax.tree.map(lambda leaf: leaf[0], drawn)
    figures = {
        "trace": config.trace,
        "requests": trace.num_requests,
        "rows_from": config.table_split,
        "matched": f"a row among the {NEIGHBOURS} nearest in prompt and output length"
        if lengths is not None
        else "any row, evenly",
        "rows_times_as_long_as_recorded": {"prompt_tokens": prompt_ratio, "output_tokens": output_ratio},
        "recorded_requests_skipped": trace.skipped_rows,
    }
    return Requests(trace.arrival_s, one, None), named.names, figures


def preparation_settings(plan: Preparation) -> dict[str, Any]:
    """Return all that determines a table, the content of ``config.json``."""
    config = plan.config
    files = [file for path in config.log.log for file in _files_of(path)]
    return settings_of(
        "prepare_data", config, files={"log": files, "fleet": plan.fleet_file, "trace": config.trace}
    )


def _files_of(path: str) -> list[pathlib.Path]:
    folder = pathlib.Path(path)
    return [folder / ARRAYS, folder / PROMPTS] if folder.is_dir() else [folder]


def write_prepared(folder: RunFolder, plan: Preparation, prepared: Prepared, *, plot: bool) -> str:
    """Write the results of a preparation and return them as text.

    ``table.npz`` and the predictor, ``summary.csv`` and ``summary.json``, with a trace ``requests.csv``,
    the reports of :func:`~qos_jax.tables.report.write_reports`, and with ``plot`` the plots of test
    rows.
    """
    named = prepared.named
    write_table(
        folder.file(TABLE), named.names, named.table, split=named.split, length_log_std=named.length_log_std
    )
    save_predictor(folder.file(PREDICTOR), prepared.predictor)
    summary = plan.counts()
    if plan.trace is not None:
        requests, names, figures = pair_with_trace(plan, named)
        comment = f"arrivals: {figures['trace']}; contents: {figures['matched']}, {figures['rows_from']} rows"
        write_requests(folder.file(REQUESTS), requests, names, [comment])
        summary["paired"] = figures
    text = _write_summaries(folder, named, summary, plot)
    return f"{text}\n\n{write_reports(folder, plan, prepared, plot=plot)}"


def verify_table(path: str, out: str, *, overwrite: bool, plot: bool) -> str:
    """Summarise an existing table into a run folder and return the summary as text.

    Raises:
      InputError: naming file, array and remedy of what is wrong with the table; or the folder is in use.
    """
    named = read_table(path)
    settings = settings_of("prepare_data --verify", {"table": path}, files={"table": path})
    folder = open_run_folder(out, settings, overwrite=overwrite)
    return _write_summaries(folder, named, {"rows": named.num_rows, "experts": list(named.names)}, plot)


def _write_summaries(folder: RunFolder, named: NamedTable, summary: dict[str, Any], plot: bool) -> str:
    """Write summaries and plots of a table, and return them as text."""
    rows = summarise_table(named)
    write_summary(folder, rows)
    folder.write_json("summary.json", {**summary, "table": [dataclasses.asdict(row) for row in rows]})
    if plot:
        held_out = named.split is not None and bool((named.split == TEST).any())
        write_table_plots(folder, split_rows(named, SPLITS[TEST]) if held_out else named)
    lines = [f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in summary.items() if value]
    return "\n".join([*lines, "", render_summary(rows)])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
