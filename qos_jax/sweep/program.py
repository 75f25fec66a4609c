"""Run the cells of a sweep on all devices: blocks of runs in one program, chunks of bounded memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from qos_jax.devices import LANES, gather, replicate, spread
from qos_jax.errors import input_error
from qos_jax.kernels import vmap_runs
from qos_jax.policies import Policy
from qos_jax.simulation.blocks import cpu_block_runs
from qos_jax.simulation.world import TURNS_FROM_REQUESTS
from qos_jax.sweep.grid import CellGroup
from qos_jax.sweep.lane import Lane, LaneConfig, LaneResult, lane_bytes, run_lane

ACCELERATOR_BLOCK_RUNS = 8192
# So that a kill loses little and progress is told often: at most so many requests a device in a chunk.
CHUNK_REQUESTS = {"cpu": 2**17, "gpu": 2**24, "tpu": 2**24}


@dataclasses.dataclass(frozen=True)
class ChunkPlan:
    """How the cells of a group are cut: chunks of whole cells, each in blocks of runs.

    Which runs share a block depends on the order of the cells and, where memory is short, on the memory,
    and all blocks are worked out by the same program. So neither chunks nor the number of devices
    change a result; but XLA may round a program for one device otherwise than one for several, which was
    seen to change a last bit of some metrics.
    """

    block_runs: int  # runs stepped together
    chunk_cells: int  # whole cells, and blocks for every device unless it is the only chunk
    chunks: int
    run_bytes: int  # estimated, of a run on its device
    chunk_bytes: int  # estimated, of a chunk on all devices of this process
    device_bytes: float  # what a program may take on one device

    def halved(self) -> ChunkPlan | None:
        """Return the plan with blocks of half as many runs; None if they are of one."""
        if self.block_runs == 1:
            return None
        return dataclasses.replace(self, block_runs=max(self.block_runs // 2, 1))


def plan_chunks(
    config: LaneConfig,
    group: CellGroup,
    mesh: Mesh,
    max_bytes: float,
    *,
    cell_requests: int,
    chunk_requests: int | None = None,
) -> ChunkPlan:
    """Cut the cells of a group so that a chunk stays within ``max_bytes`` on this process' devices.

    Args:
      config: static sizes.
      group: the cells.
      mesh: the devices.
      max_bytes: for all devices of this process together.
      cell_requests: requests that one cell takes.
      chunk_requests: at most so many in a chunk, if it is more than one block; by default
        ``CHUNK_REQUESTS`` for each device.

    Raises:
      InputError: not even one run fits.
    """
    platform = mesh.devices.flat[0].platform
    cells, seeds = len(group.cell), config.seeds
    one = jax.tree.map(lambda leaf: leaf[0], lanes_of(config, group, np.arange(1), 0))
    run_bytes = lane_bytes(config, group.source, one)
    here = len(mesh.local_devices)
    # In and out, each of a chunk's runs holds its numbers and metrics even while other blocks run.
    idle_bytes = 2 * sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(one))
    most = cpu_block_runs(config.serving) if platform == "cpu" else ACCELERATOR_BLOCK_RUNS
    fitting = int(max_bytes // (here * (run_bytes + idle_bytes)))
    if fitting < 1:
        raise input_error(
            f"{max_bytes / 1e9:g} GB do not hold a run of {config.num_requests:,} requests on each of {here} "
            f"devices ({run_bytes / 1e6:,.1f} MB each)",
            field="max_memory_gb",
            remedy="raise it, or lower num_requests",
        )
    block = min(most, cells * seeds)
    while block > fitting:  # by halves, so that few sizes are ever compiled
        block = max(block // 2, 1)
    unit = block // math.gcd(block, seeds)  # cells that fill whole blocks
    unit *= math.ceil(mesh.size * block / (unit * seeds))  # and give every device one
    spare = max_bytes - here * block * run_bytes
    by_memory = max(int(spare // (idle_bytes * seeds)), unit)
    pace = chunk_requests or CHUNK_REQUESTS.get(platform, 2**24) * mesh.size
    by_pace = max(pace // cell_requests, 1)
    chunks = math.ceil(cells / max(min(by_memory, by_pace) // unit * unit, unit))
    chunk_cells = math.ceil(cells / chunks / unit) * unit if chunks > 1 else cells
    chunks = math.ceil(cells / chunk_cells)
    return ChunkPlan(
        block_runs=block,
        chunk_cells=chunk_cells,
        chunks=chunks,
        run_bytes=run_bytes,
        chunk_bytes=here * block * run_bytes + chunk_cells * seeds * idle_bytes,
        device_bytes=max_bytes / here,
    )


def lanes_of(config: LaneConfig, group: CellGroup, cells: np.ndarray, seed: int) -> Lane:
    """Return the runs of some cells, seeds fastest: NumPy leaves [cells x S, ...].

    Args:
      config: static sizes.
      group: the cells' group.
      cells: [c] places in the group.
      seed: of all draws.
    """
    seeds = config.seeds
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), seeds)))
    places = np.arange(seeds)
    of_seed: dict[str, Any] = {
        "seed": np.tile(places.astype(np.int32), len(cells)),
        "key_data": np.tile(keys, (len(cells), 1)),
        "policy_seed": np.tile((seed + places).astype(np.uint32), len(cells)),
    }
    numbers = jax.tree.map(lambda leaf: np.repeat(leaf[cells], seeds, axis=0), group.numbers)
    return Lane(cell=numbers, **of_seed)


class LaneProgram:
    """A policy on the cells of a group, compiled for chunks of one size."""

    def __init__(
        self, config: LaneConfig, policy: Policy, group: CellGroup, plan: ChunkPlan, mesh: Mesh, seed: int
    ) -> None:
        """Compile it; the group's source and the policy's parameters stay on the devices."""
        config = dataclasses.replace(config, measures=policy.measures)
        self._config, self._group, self._plan, self._mesh, self._seed = config, group, plan, mesh, seed
        runs = plan.chunk_cells * config.seeds
        requests = len(group.cell) * config.seeds * config.num_requests
        in_turn = policy.takes_turns(config.serving)
        if config.choices is not None:  # a world
            in_turn = in_turn and requests >= TURNS_FROM_REQUESTS
        self._blocks = math.ceil(runs / plan.block_runs / mesh.size) * mesh.size
        self._shared = replicate(mesh, (policy.params, group.source))
        some = np.zeros(plan.chunk_cells, np.int64)
        self._compiled = (
            _program(config, policy.act_function(), in_turn, mesh)
            .lower(*self._shared, self._spread(lanes_of(config, group, some, seed)))
            .compile()
        )

    @property
    def measured_bytes(self) -> int | None:
        """Bytes that the program takes on one device by XLA's own analysis; None if it has none."""
        analysis = self._compiled.memory_analysis()
        if analysis is None:
            return None
        parts = ("argument", "output", "temp")
        return sum(int(getattr(analysis, f"{part}_size_in_bytes")) for part in parts)

    def run(self, cells: np.ndarray, arrival_rate_per_s: np.ndarray | None = None) -> np.ndarray:
        """Return the metrics of some cells, [c, S, M] float64, those of ``metric_names``.

        Args:
          cells: [c] places in the group, at most the plan's ``chunk_cells``.
          arrival_rate_per_s: [c], in place of the cells' own.

        Raises:
          RuntimeError: a request is unaccounted for (a defect: arrived = completed + rejected + dropped).
        """
        seeds = self._config.seeds
        lanes = lanes_of(self._config, self._group, cells, self._seed)
        if arrival_rate_per_s is not None:
            rates: Any = np.repeat(arrival_rate_per_s.astype(np.float32), seeds)
            lanes = dataclasses.replace(lanes, cell=dataclasses.replace(lanes.cell, arrival_rate_per_s=rates))
        result = gather(self._compiled(*self._shared, self._spread(lanes)))
        order = self._order()
        metrics, wrong = (np.empty_like(leaf) for leaf in (result.metrics, result.unaccounted))
        metrics[order], wrong[order] = result.metrics, result.unaccounted
        runs = len(cells) * seeds
        metrics, wrong = (leaf.reshape(-1, *leaf.shape[2:])[:runs] for leaf in (metrics, wrong))
        if wrong.any():
            raise RuntimeError(
                f"{wrong.sum()} requests are unaccounted for: this is a defect, please report it"
            )
        return metrics.reshape(len(cells), seeds, -1).astype(np.float64)

    def _spread(self, lanes: Lane) -> Lane:
        """Put runs [L, ...] on the devices as blocks [blocks, block_runs, ...], filled up with repeats."""
        size = self._blocks * self._plan.block_runs
        at = np.minimum(np.arange(size), len(lanes.seed) - 1).reshape(self._blocks, -1)[self._order()]
        return spread(self._mesh, jax.tree.map(lambda leaf: leaf[at], lanes))

    def _order(self) -> np.ndarray:
        """Return which block stands at each place: dealt in turn, so that crowded ones are shared out."""
        return np.arange(self._blocks).reshape(-1, self._mesh.size).T.reshape(-1)


@functools.cache
def _program(config: LaneConfig, policy_function: Any, in_turn: bool, mesh: Mesh) -> Any:
    """Return the jitted function of (policy parameters, source, blocks of runs)."""

    def on_device(params: Any, source: Any, blocks: Lane) -> LaneResult:
        one = functools.partial(run_lane, config, policy_function, params, source)
        return jax.lax.map(vmap_runs(one, in_turn=in_turn), blocks)

    spread_out = PartitionSpec(LANES)
    return jax.jit(
        jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), spread_out),
            out_specs=spread_out,
            check_vma=False,  # the simulator's loops start from constants, which are the same on every device
        )
    )
