#!/usr/bin/env bash
# litellm 1.110.2: a second Router in the same process, such as one for each fleet or setting of a comparison.
#
# A good guess: each Router with routing_strategy "latency-based-routing" learns the latencies of its own deployments;
# each with "usage-based-routing" counts their tokens.
# Instead: only the first Router of a process does. The handler that measures is a callback shared by the process, and
# that of a later Router is taken for a copy of the first and left out, with no warning. The second latency-based
# Router chooses at random for good, the second usage-based one sends everything to its first deployment; the first
# one's handler writes their numbers into the first one's cache. A comparison of two settings in one process measures
# the first alone. Two model names in one Router work, as does a process for each Router.
# Source: litellm/litellm_core_utils/logging_callback_manager.py, _get_custom_logger_key: the class name and the
# attributes that are str, bool or int; these handlers' caches and settings are neither.
#
# Seen:
#   litellm 1.110.2
#   latency-based, first Router, two model names: to slow, fast: [(1, 19), (1, 19)]
#   latency-based, second Router, 3 to 17 of 20 to slow: True
#   usage-based, first Router: (10, 10)
#   usage-based, second Router: (20, 0)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install litellm==1.110.2
export LITELLM_LOCAL_MODEL_COST_MAP=True LITELLM_LOG=CRITICAL
observe <<'PROGRAM'
import threading
import time
from http.server import ThreadingHTTPServer

from finding import Answers, shown, versions
from litellm import Router

versions("litellm")


class Chat(Answers):
    """Answers a chat after the time of its server."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.chats += 1
        time.sleep(self.server.takes_s)
        choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}
        body = {"id": "x", "object": "chat.completion", "created": 1, "model": "x", "choices": [choice], "usage": usage}
        self.answer(body)


def serve(times_s):
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Chat) for _ in times_s]
    for server, takes_s in zip(servers, times_s):
        server.chats, server.takes_s = 0, takes_s
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return servers


def requests_by_server(strategy, slow_s, *names):
    """Send 20 chats to each model name of a new Router over a slow and a fast server; return their counts by name."""
    groups = {name: serve((slow_s, 0.01)) for name in names}
    # The first request of a process loads modules: it goes to a server of its own.
    deployments = [
        {"model_name": name, "litellm_params": {
            "model": "openai/x", "api_key": "none", "api_base": f"http://127.0.0.1:{server.server_port}/v1"}}
        for name, servers in (groups | {"first": serve((0.01,))}).items() for server in servers
    ]
    router = Router(model_list=deployments, routing_strategy=strategy, num_retries=0)
    for name in ("first", *names):
        for _ in range(20):
            router.completion(name, [{"role": "user", "content": "hi"}])
            time.sleep(0.1)
    return [tuple(server.chats for server in servers) for servers in groups.values()]


seen = requests_by_server("latency-based-routing", 1.0, "m", "n")
shown("latency-based, first Router, two model names: to slow, fast", seen, all(slow <= 2 for slow, _ in seen))
[(slow, fast)] = requests_by_server("latency-based-routing", 1.0, "m")
shown("latency-based, second Router, 3 to 17 of 20 to slow", 3 <= slow <= 17, 3 <= slow <= 17)
[seen] = requests_by_server("usage-based-routing", 0.01, "m")
shown("usage-based, first Router", seen, min(seen) >= 8)
[seen] = requests_by_server("usage-based-routing", 0.01, "m")
shown("usage-based, second Router", seen, seen == (20, 0))
PROGRAM
