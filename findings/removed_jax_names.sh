#!/usr/bin/env bash
# jraph 0.0.6.dev0 and stoa-env 0.1.2 with a current jax: functions that can't be called any more.
#
# A good guess: both install without a cap on jax, import without a warning, and most of each works, so the rest
# works too.
# Instead: `jax.tree_map` and `jax.tree_leaves`, removed from jax long ago, are still called inside single
# functions. jraph's `zero_out_padding` and `get_fully_connected_graph`, and the step of Stoa's
# OptimisticResetVmapWrapper, raise AttributeError at their first call; an import or a test of the neighbours
# (pad_with_graphs, AutoResetWrapper) does not tell.
# Source: jraph/_src/utils.py; stoa/core_wrappers/optimistic_auto_reset.py (step).
#
# Seen:
#   jraph 0.0.6.dev0, stoa-env 0.1.2, jax 0.10.2
#   jraph.pad_with_graphs: [3 2]
#   jraph.zero_out_padding: AttributeError: module 'jax' has no attribute 'tree_map'
#   jraph.get_fully_connected_graph: AttributeError: module 'jax' has no attribute 'tree_leaves'
#   OptimisticResetVmapWrapper.reset: (4, 4)
#   OptimisticResetVmapWrapper.step: AttributeError: module 'jax' has no attribute 'tree_map'
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 jraph==0.0.6.dev0 stoa-env==0.1.2 gymnax==0.0.9 six==1.17.0
observe <<'PROGRAM'
import gymnax
import jax
import jax.numpy as jnp
import jraph
from finding import error_of, shown, versions
from stoa.core_wrappers.optimistic_auto_reset import OptimisticResetVmapWrapper
from stoa.env_adapters.gymnax import GymnaxToStoa

versions("jraph", "stoa-env", "jax")
graph = jraph.GraphsTuple(
    nodes=jnp.ones((3, 2)), edges=jnp.ones((2, 1)), senders=jnp.array([0, 1]), receivers=jnp.array([1, 2]),
    n_node=jnp.array([3]), n_edge=jnp.array([2]), globals=None,
)
padded = jraph.pad_with_graphs(graph, 5, 4)
shown("jraph.pad_with_graphs", padded.n_node, padded.n_node.tolist() == [3, 2])
error = error_of(lambda: jraph.zero_out_padding(padded))
shown("jraph.zero_out_padding", error, error is not None and "tree_map" in error)
error = error_of(lambda: jraph.get_fully_connected_graph(2, 1, jnp.ones((2, 3))))
shown("jraph.get_fully_connected_graph", error, error is not None and "tree_" in error)

env, params = gymnax.make("CartPole-v1")
env = OptimisticResetVmapWrapper(GymnaxToStoa(env, params), num_envs=4, reset_ratio=2)
state, timestep = env.reset(jax.random.key(0))
shown("OptimisticResetVmapWrapper.reset", timestep.observation.shape, timestep.observation.shape == (4, 4))
error = error_of(lambda: env.step(state, jnp.zeros(4, jnp.int32)))
shown("OptimisticResetVmapWrapper.step", error, error is not None and "tree_map" in error)
PROGRAM
