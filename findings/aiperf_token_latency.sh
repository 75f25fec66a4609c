#!/usr/bin/env bash
# aiperf 0.13.0: what the per-request records of profile_export.jsonl mean.
#
# A good guess: the file has the measured requests; output_token_count is the server's count, which the server
# sends as usage; inter_token_latency is the time between the tokens that were received.
# Instead: warm-up requests stand in the same file, with session_num counted anew after them. Token counts are the
# client tokenizer's over the text, and inter_token_latency is the decode time divided by that count: a server
# that sends 5 tokens 40 ms apart is reported at 2 ms a token where the client's tokenizer makes 95 tokens of
# the text. Beside it stand the server's usage_completion_tokens and inter_chunk_latency, which are right. A
# failed request has no time of acknowledgement and ends in the instant it starts, however long it held the server.
# Source: aiperf/metrics/types/inter_token_latency_metric.py (its formula divides by the output sequence length);
# the option --use-server-token-count takes the server's counts.
#
# Seen:
#   aiperf 0.13.0
#   phases in the file: ['warmup', 'warmup', 'profiling', 'profiling', 'profiling', 'profiling', 'profiling', 'profiling']
#   session_num: [0, 1, 0, 1, 2, 3, 4, 5]
#   output_token_count, usage_completion_tokens: (95, 5)
#   mean inter_chunk_latency, inter_token_latency in ms: (42.0, 1.79)
#   failed: code, acknowledged, ms from start to end: [(500, None, 0)]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install aiperf==0.13.0
observe <<'PROGRAM'
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from finding import shown, versions
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

versions("aiperf")
# A tokenizer of the client's own, a token a byte: what a name that isn't the server's model amounts to.
bytes_level = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
bytes_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_level.decoder = decoders.ByteLevel()
folder = Path("tokenizer").absolute()
folder.mkdir()
bytes_level.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


class Server(BaseHTTPRequestHandler):
    """Answers a chat by five chunks, one token each, 40 ms apart; the fifth chat by 500 after 200 ms."""

    protocol_version = "HTTP/1.1"
    chats = 0

    def log_message(self, *_):
        pass

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, "application/json", json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())

    def event(self, data):
        line = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Server.chats += 1
        if Server.chats == 5:
            time.sleep(0.2)
            self.answer(500, "application/json", b'{"error": {"message": "overloaded"}}')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(5):
            time.sleep(0.04)
            choice = {"index": 0, "delta": {"content": " one two three four"}, "finish_reason": None}
            self.event({"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        self.event({"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": usage})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
command = [
    str(Path(sys.executable).parent / "aiperf"), "profile", "--model", "m", "--streaming", "--endpoint-type", "chat",
    "--url", f"http://127.0.0.1:{server.server_port}", "--tokenizer", str(folder), "--request-count", "6",
    "--warmup-request-count", "2", "--concurrency", "1", "--isl", "20", "--artifact-dir", "out", "--ui", "none",
    "--no-gpu-telemetry",
]
run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150)
records = Path("out/profile_export.jsonl")
if not records.exists():
    sys.exit(f"DIFFERS from the finding: no records\n{run.stdout[-2000:]}")
rows = sorted((json.loads(line) for line in records.open()), key=lambda row: row["metadata"]["request_start_ns"])
phases = [row["metadata"]["benchmark_phase"] for row in rows]
shown("phases in the file", phases, phases == ["warmup"] * 2 + ["profiling"] * 6)
sessions = [row["metadata"]["session_num"] for row in rows]
shown("session_num", sessions, sessions == [0, 1, 0, 1, 2, 3, 4, 5])
metrics = {name: value["value"] for name, value in rows[-1]["metrics"].items()}
counts = metrics["output_token_count"], metrics["usage_completion_tokens"]
shown("output_token_count, usage_completion_tokens", counts, counts == (95, 5))
gaps = metrics["inter_chunk_latency"]
mean_gap, per_token = sum(gaps) / len(gaps), metrics["inter_token_latency"]
shown("mean inter_chunk_latency, inter_token_latency in ms", (round(mean_gap, 1), round(per_token, 2)),
      mean_gap > 38 and abs(per_token - sum(gaps) / 94) < 0.05)
failed = [row["metadata"] | {"code": row["error"]["code"]} for row in rows if row.get("error")]
seen = [(row["code"], row.get("request_ack_ns"), round((row["request_end_ns"] - row["request_start_ns"]) / 1e6)) for row in failed]
shown("failed: code, acknowledged, ms from start to end", seen, len(seen) == 1 and seen[0] == (500, None, 0))
PROGRAM
