#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: keeping the best two checkpoints while the metric gets worse.
#
# A good guess: with max_to_keep=2 and best_fn, the two best are kept, and the newest one beside them, since a run
# has to resume from it; a save that returned True is there to be restored.
# Instead: save returns True for every step and the newest is deleted as soon as two better ones exist.
# latest_step() then names an old step, and a resumed run repeats all that came after it, silently. The opposite
# happens where metrics are missing: such steps are never deleted by default, whatever max_to_keep says. Keep two
# managers, one of the newest and one of the best, or a preservation policy that holds the latest.
# Source: orbax/checkpoint/checkpoint_manager.py (_get_default_preservation_policy: best_fn replaces
# LatestN by BestN, with keep_checkpoints_without_metrics).
#
# Seen:
#   orbax-checkpoint 0.12.8, jax 0.10.2
#   what save returned, steps 0 to 4: [True, True, True, True, True]
#   steps kept, latest_step(): ([0, 1], 1)
#   steps kept where 2 to 4 have no metrics: [0, 1, 2, 3, 4]
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


def run(folder, returns):
    options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda metrics: metrics["return"], best_mode="max")
    saved = []
    with ocp.CheckpointManager(f"{__file__}.{folder}", options=options) as manager:
        for step, value in enumerate(returns):
            state = ocp.args.StandardSave({"step": jnp.int32(step)})
            saved.append(manager.save(step, args=state, metrics=None if value is None else {"return": value}))
        manager.wait_until_finished()
        return saved, sorted(manager.all_steps()), manager.latest_step()


saved, kept, latest = run("worse", [5.0, 4.0, 3.0, 2.0, 1.0])
shown("what save returned, steps 0 to 4", saved, saved == [True] * 5)
shown("steps kept, latest_step()", (kept, latest), (kept, latest) == ([0, 1], 1))
saved, kept, latest = run("unmeasured", [5.0, 4.0, None, None, None])
shown("steps kept where 2 to 4 have no metrics", kept, kept == [0, 1, 2, 3, 4])
PROGRAM
