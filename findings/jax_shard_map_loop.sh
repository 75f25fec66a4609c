#!/usr/bin/env bash
# jax 0.10.2: a loop that starts from zeros, under vmap and under shard_map.
#
# A good guess: code that runs under jit and vmap runs under shard_map: the body sees arrays of its share.
# Instead: a constant made inside (jnp.zeros, a counter) is typed as equal on all devices, and after one turn of
# the loop that adds the device's data it is not: TypeError, the carry's types differ though shapes and dtypes
# are equal. All of scan, while_loop and fori_loop with such a start fail, in any library beneath the caller.
# Start from something made of the data (zeros_like), pcast the start, or turn check_vma off.
# Source: jax's shard_map guide, section on scan and varying manual axes.
#
# Seen:
#   jax 0.10.2, jaxlib 0.10.2
#   vmap, from zeros: 36.0
#   shard_map, from zeros: TypeError: scan body function carry input and carry output must have equal types, but they differ:
#   shard_map without check_vma, from zeros: 36.0
#   shard_map, from zeros_like(rows): 36.0
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2
observe <<'PROGRAM'
import jax
import jax.numpy as jnp
from finding import error_of, shown, versions
from jax.sharding import AxisType, PartitionSpec

jax.config.update("jax_num_cpu_devices", 2)
versions("jax", "jaxlib")
mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
rows = jnp.ones((4, 3))


def from_zeros(rows):
    return jax.lax.scan(lambda total, _: (total + rows, None), jnp.zeros(rows.shape), None, length=3)[0]


def from_rows(rows):
    return jax.lax.scan(lambda total, _: (total + rows, None), jnp.zeros_like(rows), None, length=3)[0]


def sharded(function, **how):
    part = PartitionSpec("batch")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=part, out_specs=part, **how))(rows)


seen = float(jax.jit(jax.vmap(from_zeros))(rows).sum())
shown("vmap, from zeros", seen, seen == 36)
error = error_of(lambda: sharded(from_zeros))
shown("shard_map, from zeros", error, error is not None and error.startswith("TypeError"))
seen = float(sharded(from_zeros, check_vma=False).sum())
shown("shard_map without check_vma, from zeros", seen, seen == 36)
seen = float(sharded(from_rows).sum())
shown("shard_map, from zeros_like(rows)", seen, seen == 36)
PROGRAM
