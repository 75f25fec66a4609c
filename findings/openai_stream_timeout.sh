#!/usr/bin/env bash
# openai 3.57.0 and litellm 1.110.2: timeout=1 as the patience of a request.
#
# A good guess: a request ends after a second, answered or not, streamed or not.
# Instead: it bounds each wait for bytes, not the request. A stream whose chunks are 0.2 s apart runs for as long as the
# answer is, here 4 s, with no error; only a gap of more than a second would end it. Not streamed, the same answer does
# fail, but the client sends it again twice: the error comes after more than 3 s, and a server that was too slow has
# been given the request three times. To bound a request use asyncio.timeout, or a clock in the loop over chunks; to send
# it once, max_retries=0.
# Source: openai/_base_client.py (the number becomes an httpx timeout, which has connect, read, write and pool parts;
# timeouts are retried); litellm hands it on for a stream.
#
# Seen:
#   openai 3.57.0, litellm 1.110.2
#   openai, streamed: chunks, requests that the server got, seconds over 3.9: (20, 1, True)
#   litellm, streamed: (20, 1, True)
#   openai, not streamed: error, requests that the server got, seconds over 3: ('APITimeoutError', 3, True)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install openai==3.57.0 litellm==1.110.2
export LITELLM_LOCAL_MODEL_COST_MAP=True LITELLM_LOG=CRITICAL
observe <<'PROGRAM'
import json
import threading
import time
from http.server import ThreadingHTTPServer

import litellm
import openai
from finding import Answers, shown, versions

versions("openai", "litellm")


class Chat(Answers):
    """Answers 20 tokens in 4 s: as 20 chunks 0.2 s apart, or at once at the end."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.chats += 1
        self.stream() if request.get("stream") else self.whole()

    def whole(self):
        time.sleep(4)
        choice = {"index": 0, "message": {"role": "assistant", "content": "a" * 20}, "finish_reason": "stop"}
        body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        self.answer(body)

    def event(self, data):
        line = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(20):
            time.sleep(0.2)
            choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": None}
            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            self.event(json.dumps(chunk))
        self.event(json.dumps(chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")


server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
threading.Thread(target=server.serve_forever, daemon=True).start()
base_url = f"http://127.0.0.1:{server.server_port}/v1"
client = openai.OpenAI(base_url=base_url, api_key="none", timeout=1)
message = [{"role": "user", "content": "hi"}]


def streamed(call):
    """Return the chunks with text, the requests that the server got, whether it took 3.9 s."""
    server.chats, start_s = 0, time.perf_counter()
    texts = [chunk.choices[0].delta.content for chunk in call() if chunk.choices]
    return sum(bool(text) for text in texts), server.chats, time.perf_counter() - start_s > 3.9


seen = streamed(lambda: client.chat.completions.create(model="m", messages=message, stream=True))
shown("openai, streamed: chunks, requests that the server got, seconds over 3.9", seen, seen == (20, 1, True))
seen = streamed(lambda: litellm.completion(
    "openai/m", message, api_base=base_url, api_key="none", stream=True, timeout=1))
shown("litellm, streamed", seen, seen == (20, 1, True))
server.chats, start_s = 0, time.perf_counter()
try:
    client.chat.completions.create(model="m", messages=message)
    error = None
except Exception as failure:
    error = type(failure).__name__
seen = error, server.chats, time.perf_counter() - start_s > 3
shown("openai, not streamed: error, requests that the server got, seconds over 3", seen,
      seen == ("APITimeoutError", 3, True))
PROGRAM
