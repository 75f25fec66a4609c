#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: restoring into a target of another dtype or length.
#
# A good guess: a target of another shape or dtype is refused: a checkpoint that does not fit the code must not
# load, least of all with strict on, as it is by default.
# Instead: dtypes are cast without a word as C does: 1.7 to integer 1, 300 to int8 44, float64 1e300 to float32
# infinity (what a process without x64 asks for when the one that saved had it). A target of another shape is
# refused if it is a jax array; if it is a NumPy array its shape is not looked at, and what comes back has the
# stored one. With strict=False a jax target cuts off or fills up with zeros: a wider layer loads as if trained.
# Compare shapes and dtypes with the checkpoint's metadata before the restore.
# Source: orbax/checkpoint type handlers (ArrayRestoreArgs: dtype, strict); StandardRestore's documentation.
#
# Seen:
#   orbax-checkpoint 0.12.8, jax 0.10.2
#   1.7, -2.9, 300 into int8: [1, -2, 44]
#   1e300 into float32: inf
#   four numbers into a jax array of six: ValueError: Requested shape: (6,) is not compatible with the stored shape: (4,). Truncating/padding is disabled. To enable it, set `strict=False` in `ArrayRestoreArgs` for any array in v0 API or `enable_padding_and_truncation=True` in `ArrayOptions.Loading` in v1 API.
#   four numbers into a NumPy array of six, shape: (4,)
#   into a jax array of six, strict=False: [inf, 0.0, 0.0]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8
observe <<'PROGRAM'
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from finding import error_of, shown, versions

logging.set_verbosity(logging.FATAL)
versions("orbax-checkpoint", "jax")
with ocp.CheckpointManager(f"{__file__}.kept") as manager:
    manager.save(0, args=ocp.args.StandardSave({"w": np.array([1.7, -2.9, 300.0, 1e300])}))
    manager.wait_until_finished()

    def restored(target, **how):
        return np.asarray(manager.restore(0, args=ocp.args.StandardRestore({"w": target}, **how))["w"])

    seen = restored(jnp.zeros(4, jnp.int8)).tolist()
    shown("1.7, -2.9, 300 into int8", seen[:3], seen[:3] == [1, -2, 44])
    seen = restored(jnp.zeros(4, jnp.float32)).tolist()
    shown("1e300 into float32", seen[3], seen[3] == float("inf"))
    error = error_of(lambda: restored(jnp.zeros(6)))
    shown("four numbers into a jax array of six", error, error is not None and error.startswith("ValueError"))
    seen = restored(np.zeros(6)).shape
    shown("four numbers into a NumPy array of six, shape", seen, seen == (4,))
    seen = restored(jnp.zeros(6), strict=False).tolist()
    shown("into a jax array of six, strict=False", seen[3:], seen[4:] == [0.0, 0.0])
PROGRAM
