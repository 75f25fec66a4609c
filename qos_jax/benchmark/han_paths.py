"""The HAN by dense groups (structured) against edge lists (generic, jraph): equal results, and how fast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.benchmark.row import HAN_PATHS, Speed, sizes
from qos_jax.benchmark.timing import compile_program, timed
from qos_jax.benchmark.work import Work, busy_observations
from qos_jax.policies import policy
from qos_jax.policies.greedy_params import greedy_params
from qos_jax.policies.han import HANConfig
from qos_jax.policies.han_star import StarEmbedding, StarEncoder, graph_by_type, star_graph
from qos_jax.policies.router_input import router_input
from qos_jax.routing.graph_tuple import GraphLayout, to_graphs_tuple

STRUCTURED, GENERIC = "structured", "generic"
_TOLERANCE = 1e-4  # of float32 sums in another order, relative to the largest value of all


def measure_han_paths(work: Work, config: HANConfig, graphs: int, repeats: int) -> list[Speed]:
    """Time both paths on a batch of graphs of a busy fleet, forward and with the gradient of the weights.

    Both start from their own form of the graph, made beforehand. A "decision" is one graph embedded.

    Args:
      work: requests that fill the fleet before.
      config: of the HAN.
      graphs: in the batch.
      repeats: timed calls, after one to warm up.

    Returns:
      Four rows; in those of the generic path ``generic_over_structured`` is the ratio of processor times.

    Raises:
      RuntimeError: the two paths disagree, beyond rounding: a defect.
    """
    seen = busy_observations(work, policy("shortest_queue"), graphs)
    features = jax.jit(jax.vmap(lambda one: router_input(one, greedy_params()).graph))(seen)
    layout = GraphLayout(work.serving.num_experts, work.serving.slots)
    forms = {
        STRUCTURED: jax.jit(jax.vmap(star_graph))(features),
        GENERIC: jax.jit(jax.vmap(lambda one: graph_by_type(to_graphs_tuple(one), layout)))(features),
    }
    encoder = StarEncoder(config)
    first = jax.tree.map(lambda leaf: leaf[0], features)
    params = jax.jit(encoder.init)(jax.random.key(0), first)

    def forward(params: Any, batch: Any) -> StarEmbedding:
        embedded: Any = jax.vmap(lambda one: encoder.apply(params, one))(batch)
        return embedded

    def loss(params: Any, batch: Any) -> jax.Array:
        embedded = forward(params, batch)
        return jnp.mean(jnp.square(embedded.arrived)) + jnp.mean(jnp.square(embedded.expert))

    rows: list[Speed] = []
    passes: dict[str, Callable[..., Any]] = {"forward": forward, "gradient": jax.grad(loss)}
    for pass_name, function in passes.items():
        results: dict[str, Any] = {}
        rows_of: dict[str, Speed] = {}
        for path, batch in forms.items():
            program = compile_program(function, params, batch)
            results[path], times = timed(functools.partial(program, params, batch), repeats)
            figures = {}
            if rows_of:
                figures["generic_over_structured"] = times["cpu_s"] / rows_of[STRUCTURED].cpu_s
            rows_of[path] = Speed(
                what=HAN_PATHS,
                name=f"{path} {pass_name}",
                environments=graphs,
                **sizes(work.serving),
                decisions=graphs,
                **times,
                compile_s=program.compile_s,
                program_bytes_per_environment=int(program.bytes / graphs),
                figures=figures,
            )
        check_equal(results[STRUCTURED], results[GENERIC], pass_name)
        rows += rows_of.values()
    return rows


def check_equal(structured: Any, generic: Any, pass_name: str) -> None:
    """Check that both paths came to the same.

    Raises:
      RuntimeError: they did not, beyond rounding.
    """
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(structured))
    for path, one in jax.tree_util.tree_leaves_with_path(structured):
        other = dict(jax.tree_util.tree_leaves_with_path(generic))[path]
        if not np.allclose(one, other, rtol=0.0, atol=_TOLERANCE * scale):
            raise RuntimeError(
                f"the {pass_name} of the two HAN paths differs in {jax.tree_util.keystr(path)}: "
                "this is a defect, please report it"
            )
