"""How long one decision takes, from an observation on the host to the expert on the host."""

from __future__ import annotations

import time

import jax
import numpy as np

from qos_jax.benchmark.row import DECISION, Speed, sizes
from qos_jax.benchmark.work import Work, busy_observations
from qos_jax.policies import Policy, policy
from qos_jax.policies.compiled import compile_router

_OBSERVATIONS = 16  # different ones, taken in turn


def measure_decision(work: Work, router: Policy, calls: int) -> Speed:
    """Time a router as it serves: one request at a time, with the fleet's state copied in.

    Args:
      work: requests that fill the fleet before, routed by shortest_queue.
      router: who decides.
      calls: timed ones, after a tenth as many to warm up.

    Returns:
      ``figures`` hold the median and the 99th percentile of a call, wall-clock seconds.
    """
    seen = jax.device_get(busy_observations(work, policy("shortest_queue"), _OBSERVATIONS))
    observations = [jax.tree.map(lambda leaf, i=i: leaf[i], seen) for i in range(_OBSERVATIONS)]
    start = time.perf_counter()
    decide = compile_router(router, observations[0])
    compile_s = time.perf_counter() - start
    for index in range(calls // 10):
        decide(observations[index % _OBSERVATIONS])
    call_s = np.empty(calls)
    cpu_start = time.process_time()
    for index in range(calls):
        observation = observations[index % _OBSERVATIONS]
        start = time.perf_counter()
        decide(observation)
        call_s[index] = time.perf_counter() - start
    cpu_s = time.process_time() - cpu_start
    return Speed(
        what=DECISION,
        name=router.name,
        environments=1,
        **sizes(work.serving),
        decisions=calls,
        wall_s=float(call_s.sum()),
        cpu_s=cpu_s,
        compile_s=compile_s,
        figures={"median_call_s": float(np.median(call_s)), "p99_call_s": float(np.quantile(call_s, 0.99))},
    )
