#!/usr/bin/env bash
# simpy 4.1.2: a batch that waits for the next request until a deadline, `with queue.get() as get: yield get | close`.
#
# A good guess: leaving the `with` takes the wait back, so a request is either in the batch or still in the queue.
# Instead: where a request comes at the instant of the deadline, there is a third case: the deadline has ended the
# wait, the queue has handed the request over since, and the process has not been told yet. `get in result` is False,
# the cancel at the end of the `with` does nothing, as the get has been triggered, and the request is gone: neither
# served nor queued, with no error. With arrivals and deadlines on a grid of milliseconds or of a scheduler's ticks
# that is one request in 30 here; with random times no two of which are equal, none, so that a test may not show it.
# A level taken from a Container is lost in the same way.
# Ask `get.triggered`, not `get in result`, before leaving the `with`, and take get.value.
# Source: simpy/events.py (Condition: the value holds processed events; it is built one event after the deadline),
# simpy/resources/base.py (Get.cancel: `if not self.triggered`).
#
# Seen:
#   simpy 4.1.2
#   gaps of whole ms, `get in result`: served, queued, lost: (9675, 0, 325)
#   gaps of whole ms, `get.triggered`: (10000, 0, 0)
#   gaps of any length, `get in result`: (10000, 0, 0)
#   a Container, 50 put: were they got, what is left: (False, 0)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install simpy==4.1.2
observe <<'PROGRAM'
import random

import simpy
from finding import shown, versions

versions("simpy")
REQUESTS, BATCH, WAIT_MS = 10_000, 4, 10


def batching(gap_ms, arrived_in_time):
    """Put requests apart by `gap_ms(random)`, serve them in batches; how many were served, are queued, are lost."""
    env, gaps = simpy.Environment(), random.Random(0)
    queue, served = simpy.Store(env), []

    def arrivals():
        for number in range(REQUESTS):
            yield env.timeout(gap_ms(gaps))
            yield queue.put(number)

    def server():
        while True:
            batch = [(yield queue.get())]
            close = env.timeout(WAIT_MS)
            while len(batch) < BATCH:
                with queue.get() as get:
                    result = yield get | close
                    if not arrived_in_time(get, result):
                        break
                    batch.append(get.value)
            served.extend(batch)

    env.process(arrivals())
    env.process(server())
    env.run()
    return len(served), len(queue.items), REQUESTS - len(set(served)) - len(queue.items)


def by_result(get, result):
    return get in result


def by_event(get, result):
    return get.triggered


def whole_ms(gaps):
    return gaps.randint(1, 19)


def any_ms(gaps):
    return gaps.uniform(1, 19)


seen = batching(whole_ms, by_result)
shown("gaps of whole ms, `get in result`: served, queued, lost", seen, seen[2] > 100)
seen = batching(whole_ms, by_event)
shown("gaps of whole ms, `get.triggered`", seen, seen == (REQUESTS, 0, 0))
seen = batching(any_ms, by_result)
shown("gaps of any length, `get in result`", seen, seen == (REQUESTS, 0, 0))


def taken_from_container():
    env = simpy.Environment()
    tokens, seen = simpy.Container(env, capacity=100), []

    def refill():
        yield env.timeout(10)
        yield tokens.put(50)

    def consumer():
        yield env.timeout(1)
        with tokens.get(50) as get:
            result = yield get | env.timeout(9)
            seen.append(get in result)

    env.process(refill())
    env.process(consumer())
    env.run()
    return seen[0], tokens.level


seen = taken_from_container()
shown("a Container, 50 put: were they got, what is left", seen, seen == (False, 0))
PROGRAM
