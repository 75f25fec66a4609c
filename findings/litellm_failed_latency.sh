#!/usr/bin/env bash
# litellm 1.110.2: what a failed request does to a server under routing_strategy "latency-based-routing".
#
# A good guess: a server that fails is not preferred over one that answers, and one that was too slow once is tried
# again when it answers fast.
# Instead: only a success and, in the asyncio calls, a timeout leave a latency. A server that answers every request with
# an error has none, which counts as 0, the lowest: it is chosen before every server that works. A cooldown hides it for
# some seconds, then it is chosen first again; without cooldowns it gets every request for good, where simple-shuffle
# sends it half. A timeout counts as 1000 s, for an hour: a server that was slow once gets nothing more, though it now
# answers much faster than the other. The same timeout in Router.completion, not asyncio, counts as 0.
# Source: litellm/router_strategy/lowest_latency.py: _average_latency of no samples, async_log_failure_event (no method
# for failures of the other calls) and the ttl of RoutingArgs.
#
# Seen:
#   litellm 1.110.2
#   one server works, one fails at once: requests of 20 that failed: 19
#   asyncio, steady at 0.5 s, slow once then 0.01 s: requests to each: (19, 1)
#   the same without asyncio: (1, 19)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install litellm==1.110.2
export LITELLM_LOCAL_MODEL_COST_MAP=True LITELLM_LOG=CRITICAL
# litellm logs each failure to stderr; what differs is printed to stdout.
observe 2>/dev/null <<'PROGRAM'
import asyncio
import threading
import time
from http.server import ThreadingHTTPServer

from finding import Answers, shown, versions
from litellm import Router

versions("litellm")


class Chat(Answers):
    """Answers a chat as its server's plan says: status and seconds by the number of the request, from 0."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, takes_s = self.server.plan(self.server.chats)
        self.server.chats += 1
        time.sleep(takes_s)
        choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}
        body = {"id": "x", "object": "chat.completion", "created": 1, "model": "x", "choices": [choice], "usage": usage}
        self.answer(body if status == 200 else {"error": {"message": "overloaded"}}, status)


def serve(plan):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    server.chats, server.plan = 0, plan
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def slow_once(chats):
    return (200, 2.5 if chats == 0 else 0.01)


groups = {
    "first": (serve(lambda _: (200, 0.01)),),  # the first request of a process loads modules
    "broken": (serve(lambda _: (200, 0.1)), serve(lambda _: (500, 0.0))),
    "asyncio": (serve(lambda _: (200, 0.5)), serve(slow_once)),
    "threads": (serve(lambda _: (200, 0.5)), serve(slow_once)),
}
deployments = [
    {"model_name": name, "litellm_params": {
        "model": "openai/x", "api_key": "none", "api_base": f"http://127.0.0.1:{server.server_port}/v1"}}
    for name, servers in groups.items() for server in servers
]
# One Router for all: see litellm_second_router.sh. Its latencies are kept by model name.
router = Router(model_list=deployments, routing_strategy="latency-based-routing", num_retries=0, timeout=1.5,
                disable_cooldowns=True)
message = [{"role": "user", "content": "hi"}]


async def failures(name):
    failed = 0
    for _ in range(20):
        try:
            await router.acompletion(name, message)
        except Exception:
            failed += 1
        await asyncio.sleep(0.1)
    return failed


async def both():
    return await failures("broken"), await failures("asyncio")


router.completion("first", message)
failed, _ = asyncio.run(both())
shown("one server works, one fails at once: requests of 20 that failed", failed, failed >= 18)
seen = tuple(server.chats for server in groups["asyncio"])
shown("asyncio, steady at 0.5 s, slow once then 0.01 s: requests to each", seen, seen == (19, 1))
for _ in range(20):
    try:
        router.completion("threads", message)
    except Exception:
        pass
    time.sleep(0.1)
seen = tuple(server.chats for server in groups["threads"])
shown("the same without asyncio", seen, seen[0] <= 3 and sum(seen) == 20)
PROGRAM
