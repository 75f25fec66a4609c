#!/usr/bin/env bash
# sglang-router 0.3.2's policy cache_aware: where a prompt goes that no server has in its cache.
#
# A good guess, and what the documentation of cache_threshold says: to the worker with the smallest tree, the one whose
# cache was sent least; so new prompts fill the caches of all workers in turn.
# Instead: to the worker with the fewest requests in flight, whatever was sent to it before, and of equals always to
# the same one. At a load that one server can carry, every prompt goes to it: with one request at a time 30 different
# prompts fill (and soon evict) one cache while the other two servers stay empty, and with two at a time the third
# server is never used. The policies round_robin and power_of_two spread the same requests.
# Source: the docstring of cache_threshold in sglang_router/router.py; the policy itself is compiled.
#
# Seen:
#   sglang-router 0.3.2
#   cache_aware, one at a time, requests by worker: [0, 0, 30]
#   cache_aware, two at a time: [0, 15, 15]
#   round_robin, one at a time: [10, 10, 10]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install sglang-router==0.3.2
observe <<'PROGRAM'
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from http.server import ThreadingHTTPServer

from finding import Answers, shown, versions

versions("sglang-router")
letters = random.Random(0)


class Worker(Answers):
    """Looks like a server of model m, counts completions and takes 20 ms for each."""

    def do_GET(self):
        about = {"model_path": "m", "is_generation": True, "served_model_name": "m", "data": [{"id": "m"}]}
        self.answer(about)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.completions += 1
        time.sleep(0.02)
        usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
        choice = {"index": 0, "text": "a", "finish_reason": "stop"}
        self.answer({"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage})


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def complete(port):
    """Send a prompt of 400 letters that shares no prefix with another; return the status."""
    prompt = "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=400))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"model": "m", "prompt": prompt, "max_tokens": 1})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def requests_by_worker(policy, in_flight):
    """Send 30 different prompts, so many at a time, to a new router over three new workers."""
    workers = [ThreadingHTTPServer(("127.0.0.1", 0), Worker) for _ in range(3)]
    for worker in workers:
        worker.completions = 0
        threading.Thread(target=worker.serve_forever, daemon=True).start()
    port = free_port()
    urls = [f"http://127.0.0.1:{worker.server_port}" for worker in workers]
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port),
               "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--policy", policy,
               "--worker-urls", *urls]
    router = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            time.sleep(0.1)
            try:
                if complete(port) == 200:
                    break
            except OSError:
                pass
        else:
            sys.exit("DIFFERS from the finding: the router does not answer")
        for worker in workers:
            worker.completions = 0

        def client():
            for _ in range(30 // in_flight):
                assert complete(port) == 200

        clients = [threading.Thread(target=client) for _ in range(in_flight)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        return sorted(worker.completions for worker in workers)
    finally:
        router.terminate()
        router.wait()


seen = requests_by_worker("cache_aware", 1)
shown("cache_aware, one at a time, requests by worker", seen, seen == [0, 0, 30])
seen = requests_by_worker("cache_aware", 2)
shown("cache_aware, two at a time", seen, seen[0] == 0 and seen[1] >= 10 and sum(seen) == 30)
seen = requests_by_worker("round_robin", 1)
shown("round_robin, one at a time", seen, seen == [10, 10, 10])
PROGRAM
