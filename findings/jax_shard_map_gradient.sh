#!/usr/bin/env bash
# jax 0.10.2: the gradient with respect to replicated weights inside shard_map, averaged over devices.
#
# A good guess: as under pmap, each device has the gradient of its own share of the batch, and `pmean` makes the
# mean of them: the recipe of every data-parallel training loop.
# Instead: shard_map tracks which values differ between devices. The gradient with respect to a weight that does
# not is summed over the devices by the differentiation itself, so pmean is the mean of equal sums: the update is
# larger by the number of devices, without an error. With check_vma=False the old recipe is right again.
# Divide the local loss by the number of devices and leave pmean out, or differentiate a pmean of the loss.
# Source: jax's shard_map guide on varying manual axes (the transpose of pcast to varying is psum).
#
# Seen:
#   jax 0.10.2, jaxlib 0.10.2
#   gradient on one device: 1.5
#   pmean of the gradient in shard_map on 2 devices: 3.0
#   the same with check_vma=False: 1.5
#   gradient of the pmean of the loss: 1.5
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2
observe <<'PROGRAM'
import jax
import jax.numpy as jnp
from finding import shown, versions
from jax.sharding import AxisType, PartitionSpec

jax.config.update("jax_num_cpu_devices", 2)
versions("jax", "jaxlib")
mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
weight, rows = jnp.float32(1.0), jnp.arange(4.0)


def loss(weight, rows):
    return jnp.mean(weight * rows)


def averaged(weight, rows):
    return jax.lax.pmean(jax.grad(loss)(weight, rows), "batch")


def of_averaged(weight, rows):
    return jax.grad(lambda weight: jax.lax.pmean(loss(weight, rows), "batch"))(weight)


def sharded(function, **how):
    specs = dict(in_specs=(PartitionSpec(), PartitionSpec("batch")), out_specs=PartitionSpec())
    return float(jax.jit(jax.shard_map(function, mesh=mesh, **specs, **how))(weight, rows))


truth = float(jax.grad(loss)(weight, rows))
shown("gradient on one device", truth, truth == 1.5)
seen = sharded(averaged)
shown("pmean of the gradient in shard_map on 2 devices", seen, seen == 2 * truth)
seen = sharded(averaged, check_vma=False)
shown("the same with check_vma=False", seen, seen == truth)
seen = sharded(of_averaged)
shown("gradient of the pmean of the loss", seen, seen == truth)
PROGRAM
