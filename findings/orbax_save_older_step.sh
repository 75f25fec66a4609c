#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a run that starts anew in the folder of an earlier one.
#
# A good guess: saving step 10 where step 50 lies raises, or saves; and with save_interval_steps=10 a step that is
# no multiple of 10 is not saved.
# Instead: save returns False for every step up to the newest that lies there, without an error: the new run saves
# nothing until it passes the old one, and a restore returns the old run's weights. The return value alone tells.
# The interval has an exception too: in an empty folder the first step is saved whatever it is.
# Source: orbax/checkpoint/checkpoint_manager.py (should_save, save) and its save decision policies.
#
# Seen:
#   orbax-checkpoint 0.12.8, jax 0.10.2
#   run 1, interval 10, empty folder: {3: True, 5: False, 50: True}
#   run 2 in the same folder: {10: False, 20: False, 50: False}
#   the run that the latest checkpoint is of: 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8
observe <<'PROGRAM'
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from finding import shown, versions

logging.set_verbosity(logging.FATAL)
versions("orbax-checkpoint", "jax")


def run(name, steps):
    saved = {}
    with ocp.CheckpointManager(f"{__file__}.runs", options=ocp.CheckpointManagerOptions(save_interval_steps=10)) as manager:
        for step in steps:
            saved[step] = manager.save(step, args=ocp.args.StandardSave({"run": jnp.int32(name)}))
        manager.wait_until_finished()
        return saved, int(manager.restore(None)["run"])


saved, _ = run(1, [3, 5, 50])
shown("run 1, interval 10, empty folder", saved, saved == {3: True, 5: False, 50: True})
saved, restored = run(2, [10, 20, 50])
shown("run 2 in the same folder", saved, saved == {10: False, 20: False, 50: False})
shown("the run that the latest checkpoint is of", restored, restored == 1)
PROGRAM
