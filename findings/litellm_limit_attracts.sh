#!/usr/bin/env bash
# litellm 1.110.2: a limit of requests or tokens a minute (`rpm`, `tpm`) on one server of several, in the default
# routing_strategy, simple-shuffle.
#
# A good guess: the server with a limit gets its share up to the limit, those without one the rest.
# Instead: the limit is a weight, and whoever has none weighs 0: every request goes to the one server that can take the
# fewest, far beyond its limit, and none to the others. So it is with `weight` on one server alone; with an `rpm` on
# one and a `tpm` on another, `rpm` decides. No warning is given, and where all servers have a limit nothing is to be
# seen. To enforce the limit (optional_pre_call_checks) makes it worse: the requests beyond it fail with a
# RateLimitError, retried or not, while the other servers are idle.
# Give every server an rpm (or a weight), in proportion to what it can take.
# Source: litellm/router_strategy/simple_shuffle.py (_metric_weight: 0.0 for a value that is missing).
#
# Seen:
#   litellm 1.110.2
#   60 requests, no limits: to three servers, failed: (12, 22, 26, 0)
#   rpm 6 on the first: (60, 0, 0, 0)
#   tpm 100 on the first: (60, 0, 0, 0)
#   weight 1 on the second: (0, 60, 0, 0)
#   tpm 1,000,000 on the first, rpm 6 on the second: (0, 60, 0, 0)
#   rpm 6, 60, 60: (3, 29, 28, 0)
#   rpm 6 on the first, enforced, 0 retries: (6, 0, 0, 54)
#   rpm 6 on the first, enforced, 2 retries: (6, 0, 0, 54)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install litellm==1.110.2
export LITELLM_LOCAL_MODEL_COST_MAP=True LITELLM_LOG=CRITICAL
observe <<'PROGRAM'
import threading
from http.server import ThreadingHTTPServer

from finding import Answers, shown, versions
from litellm import RateLimitError, Router

versions("litellm")
CHATS = 60


class Chat(Answers):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.chats += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}
        body = {"id": "x", "object": "chat.completion", "created": 1, "model": "x", "choices": [choice], "usage": usage}
        self.answer(body)


def requests_by_server(*settings, **router_settings):
    """Send chats to a Router over a server for each of the settings; return how many each got, and how many failed."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Chat) for _ in settings]
    for server in servers:
        server.chats = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
    deployments = [
        {"model_name": "m", "litellm_params": {
            "model": "openai/x", "api_key": "none", "api_base": f"http://127.0.0.1:{server.server_port}/v1"} | setting}
        for server, setting in zip(servers, settings)
    ]
    router = Router(model_list=deployments, **router_settings)
    failed = 0
    for _ in range(CHATS):
        try:
            router.completion("m", [{"role": "user", "content": "hi"}])
        except RateLimitError:
            failed += 1
    return (*(server.chats for server in servers), failed)


seen = requests_by_server({}, {}, {})
shown(f"{CHATS} requests, no limits: to three servers, failed", seen, min(seen[:3]) >= 5 and sum(seen) == CHATS)
seen = requests_by_server({"rpm": 6}, {}, {})
shown("rpm 6 on the first", seen, seen == (CHATS, 0, 0, 0))
seen = requests_by_server({"tpm": 100}, {}, {})
shown("tpm 100 on the first", seen, seen == (CHATS, 0, 0, 0))
seen = requests_by_server({}, {"weight": 1}, {})
shown("weight 1 on the second", seen, seen == (0, CHATS, 0, 0))
seen = requests_by_server({"tpm": 1_000_000}, {"rpm": 6}, {})
shown("tpm 1,000,000 on the first, rpm 6 on the second", seen, seen == (0, CHATS, 0, 0))
seen = requests_by_server({"rpm": 6}, {"rpm": 60}, {"rpm": 60})
shown("rpm 6, 60, 60", seen, seen[0] < CHATS / 4 and min(seen[1:3]) >= 10)
# The last, as its check stays in the process; a new minute may begin within it.
enforced = ["enforce_model_rate_limits"]
for retries in (0, 2):
    seen = requests_by_server({"rpm": 6}, {}, {}, num_retries=retries, optional_pre_call_checks=enforced)
    shown(f"rpm 6 on the first, enforced, {retries} retries", seen, seen[1:3] == (0, 0) and seen[3] > CHATS / 2)
PROGRAM
