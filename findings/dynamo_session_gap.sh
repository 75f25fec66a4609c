#!/usr/bin/env bash
# ai-dynamo 1.6.1's trace replay: what the timestamp of a later turn means.
#
# A good guess: `timestamp` in a Mooncake trace is milliseconds from the start of the trace, on every line.
# Instead: on lines that share a session_id only the first is absolute. The difference between two neighbouring
# timestamps is the pause after the END of the turn before, so a slower system receives its load later: an open
# loop turned into a closed one by one more field, and arrival times that depend on the service. The same lines
# without session_id arrive as written. Compare load by the arrivals of the report, not by the trace.
# Source: the arrivals of the per-request report (below); the replay itself is compiled. See the guide
# "Mocker Trace Replay" of ai-dynamo's documentation for the format.
#
# Seen:
#   ai-dynamo 1.6.1, ai-dynamo-runtime 1.6.1
#   timestamps 0, 2000, 3000 without a session: arrivals in ms: [0, 2000, 3000]
#   with one session_id: arrivals, ends in ms: ([0, 2299, 3598], [299, 2598, 3897])
#   pause after the end of the turn before: [2000, 1000]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# Without the dependencies: the replay is in the runtime's compiled module and needs none of the servers.
install pydantic==2.14.4 typing_extensions==4.16.0
"$PYTHON" -m pip install --quiet --no-compile --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1 || exit 2
# The replay logs to stderr; what differs is printed to stdout.
observe 2>/dev/null <<'PROGRAM'
import json
from pathlib import Path

from dynamo.replay import run_trace_replay
from finding import shown, versions

versions("ai-dynamo", "ai-dynamo-runtime")
turns = [(0, 64), (2000, 128), (3000, 192)]


def replayed(name, **more):
    lines = [
        dict(timestamp=at, input_length=length, output_length=50, hash_ids=list(range(length // 64)), **more)
        for at, length in turns
    ]
    trace, report = Path(f"{name}.jsonl"), Path(f"{name}_report.jsonl")
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_trace_replay(str(trace), trace_block_size=64, capture_per_request=True, report_jsonl_path=str(report))
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    rows.sort(key=lambda row: row["arrival_time_ms"])
    return [round(row["arrival_time_ms"]) for row in rows], [round(row["terminal_time_ms"]) for row in rows]


arrival_ms, end_ms = replayed("alone")
shown("timestamps 0, 2000, 3000 without a session: arrivals in ms", arrival_ms, arrival_ms == [0, 2000, 3000])
arrival_ms, end_ms = replayed("session", session_id="a")
shown("with one session_id: arrivals, ends in ms", (arrival_ms, end_ms), arrival_ms[1] > 2000 and arrival_ms[2] > 3000)
pause_ms = [arrival_ms[1] - end_ms[0], arrival_ms[2] - end_ms[1]]
shown("pause after the end of the turn before", pause_ms, all(abs(p - q) <= 1 for p, q in zip(pause_ms, [2000, 1000])))
PROGRAM
