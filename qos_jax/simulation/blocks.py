"""How R runs are stepped: blocks of runs, together or in turn, a chunk of requests at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.routing.observation import KnownFleet
from qos_jax.serving import FleetProfile, ServiceLimits, ServingConfig

# Runs stepped together on a CPU, at most: an event loop waits for the slowest run of its block.
CPU_BLOCK_RUNS = 64
# Slots of all runs of a block, at most, so that what a step works on (some 60 bytes a slot) stays in a core's
# cache. In blocks of 64 throughout, 6 experts of 64 slots took 1.6 times as long where overload filled these;
# where most were empty, which are not stepped, 0.8 times.
CPU_BLOCK_SLOTS = 64 * 6 * 32
CHUNK_REQUESTS = 512

# The axis of runs of what is known of a fleet: the profile is the same for all.
KNOWN_BY_RUN: Any = KnownFleet(profile=None, limits=0, length_log_std=0)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Block:
    """B runs that are stepped together."""

    lanes: np.ndarray  # [B] which runs; the last block is filled up with repeats of the last run
    real: slice  # of all R runs, those whose results count
    known: KnownFleet  # on the device: the profile, leaves [N], and the numbers of each run, leaves [B, ...]

    @property
    def size(self) -> int:
        """How many of its runs count."""
        return int(self.real.stop - self.real.start)


def cpu_block_runs(config: ServingConfig) -> int:
    """Runs to step together on a CPU: a power of two, fewer the more slots a run has. See above.

    On an accelerator all runs go in one block.
    """
    fitting = max(CPU_BLOCK_SLOTS // (config.num_experts * config.slots), 4)
    return min(2 ** (fitting.bit_length() - 1), CPU_BLOCK_RUNS)


def blocks_of(
    config: ServingConfig,
    profile: FleetProfile,
    limits: ServiceLimits,
    length_log_std: np.ndarray,
    block_runs: int | None,
) -> Iterator[Block]:
    """Yield the R runs in blocks of one size.

    Args:
      config: static sizes.
      profile: the fleet, leaves [N].
      limits: NumPy leaves [R].
      length_log_std: [R, N], known error of predicted lengths.
      block_runs: runs in a block; by default :func:`cpu_block_runs` on a CPU, all elsewhere.
    """
    num_runs = len(length_log_std)
    if block_runs is None:
        block_runs = cpu_block_runs(config) if jax.default_backend() == "cpu" else num_runs
    block_runs = min(block_runs, num_runs)
    on_device = jax.tree.map(jnp.asarray, profile)
    for first in range(0, num_runs, block_runs):
        lanes = np.minimum(np.arange(first, first + block_runs), num_runs - 1)
        known = KnownFleet(
            profile=on_device,
            limits=jax.tree.map(lambda each, at=lanes: jnp.asarray(each[at], jnp.float32), limits),
            length_log_std=jnp.asarray(length_log_std[lanes], jnp.float32),
        )
        yield Block(lanes, slice(first, min(first + block_runs, num_runs)), known)


def chunks_of(num_requests: int, at_most: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the size of the chunks of T requests, and where each starts and stops.

    As few chunks, all of one size, so that next to nothing is stepped through as padding.
    """
    size = -(-num_requests // -(-num_requests // at_most))
    return size, [(start, min(start + size, num_requests)) for start in range(0, num_requests, size)]
