#!/usr/bin/env bash
# jax 0.10.2: a loop that is one kernel on a CPU falls into a kernel for each operation under jax.vmap.
#
# A good guess: jax.vmap over lanes is never worse than a loop over them, since it does the same with wider arrays; and
# a simulator's scan over small arrays compiles to one function of the processor.
# Instead: XLA gives each operation of a loop a kernel of its own, a call through its runtime apart, unless a round
# accesses less than 1,024 bytes, which next to nothing does. With the limit raised by XLA_FLAGS the whole scan is one
# kernel, and so is a lax.map of it over lanes. Under jax.vmap it is not: what writes x[i] for one lane is a scatter for
# several, and XLA leaves a loop as it is that has a scatter, a sort or a call into a library in it. A simulator of
# events on a CPU is several times as fast with lanes one after the other as with lanes together.
# Source: xla/service/cpu/small_while_loop_hoisting_pass.cc (which operations prevent it, and the bytes of a round).
#
# Seen:
#   jax 0.10.2, jaxlib 0.10.2
#   limit by default: kernels of whole loops 0, loops outside of them 1
#   limit raised: kernels of whole loops 1, loops outside of them 0
#   limit raised, lax.map over 4 lanes: kernels of whole loops 1, loops outside of them 0
#   limit raised, vmap over 4 lanes: kernels of whole loops 0, loops outside of them 1
#   the lanes of both are equal: True
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2
observe <<'PROGRAM'
import os
import subprocess
import sys

LIMIT = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1000000"
BY_DEFAULT = """
import jax
import jax.numpy as jnp

def queue(work):
    def step(x, i):
        return x.at[jnp.argmin(x)].set(jnp.max(x) + 1.0) * 0.5, None
    return jax.lax.scan(step, work, jnp.arange(1000))[0]

entry = jax.jit(queue).lower(jnp.ones(500)).compile().as_text()
entry = entry[entry.index("ENTRY") :]
print(entry.count("xla_cpu_small_call"), entry.count(" while("))
"""
os.environ.pop("XLA_FLAGS", None)  # read once a process, so the default is seen in another
ran = subprocess.run([sys.executable, "-c", BY_DEFAULT], capture_output=True, text=True, check=True)
os.environ["XLA_FLAGS"] = LIMIT

import jax
import jax.numpy as jnp
from finding import shown, versions

versions("jax", "jaxlib")


def queue(work):
    def step(x, i):
        return x.at[jnp.argmin(x)].set(jnp.max(x) + 1.0) * 0.5, None

    return jax.lax.scan(step, work, jnp.arange(1000))[0]


def compiled(function, work):
    program = jax.jit(function).lower(work).compile()
    entry = program.as_text()
    entry = entry[entry.index("ENTRY") :]
    return (entry.count("xla_cpu_small_call"), entry.count(" while(")), program(work)


def report(what, counts, expected):
    shown(what, f"kernels of whole loops {counts[0]}, loops outside of them {counts[1]}", counts == expected)


lanes = jnp.arange(2000.0).reshape(4, 500)
report("limit by default", tuple(map(int, ran.stdout.split())), (0, 1))
report("limit raised", compiled(queue, lanes[0])[0], (1, 0))
in_turn, of_turns = compiled(lambda lanes: jax.lax.map(queue, lanes), lanes)
report("limit raised, lax.map over 4 lanes", in_turn, (1, 0))
together, of_vmap = compiled(jax.vmap(queue), lanes)
report("limit raised, vmap over 4 lanes", together, (0, 1))
same = bool((of_turns == of_vmap).all())
shown("the lanes of both are equal", same, same)
PROGRAM
