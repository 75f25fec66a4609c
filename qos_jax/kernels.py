"""Small loops as one kernel of the CPU each, and lanes that take turns in them."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import jax

# XLA gives each operation of a loop a kernel of its own, some microseconds apart; a loop whose round accesses
# fewer bytes than this, by XLA's count, becomes one kernel with all that it does. XLA's default is 1,024. A
# simulated decision counts as 0.6 to 1.8 MB on 6 experts of 32 to 64 slots of either kind, 2.3 to 3.6 on 12
# of 64; a gradient of a minibatch as 234.
SMALL_LOOP_BYTES = 4_000_000
_OPTIONS = "--xla_backend_extra_options="  # a list; what a release does not know in it, it ignores
_THRESHOLD = "xla_cpu_small_while_loop_byte_threshold="
_PASS = "small-while-loop-hoisting"  # a process that has this pass disabled joins nothing


def join_small_loops() -> None:
    """Let XLA make one kernel of each small loop; before JAX is first used, since XLA reads its flags once.

    A simulation of one run takes a quarter of the processor time so (data/results/speed.md). Does nothing
    where ``XLA_FLAGS`` decides about it already.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    if any(_THRESHOLD in flag or _PASS in flag for flag in flags):
        return
    option = f"{_THRESHOLD}{SMALL_LOOP_BYTES}"
    for at, flag in enumerate(flags):
        if flag.startswith(_OPTIONS):  # of which XLA reads one alone
            flags[at] = f"{flag},{option}"
            break
    else:
        flags.append(f"{_OPTIONS}{option}")
    os.environ["XLA_FLAGS"] = " ".join(flags)


def small_loops_joined() -> bool:
    """Return whether XLA makes one kernel of each small loop: on a CPU, after :func:`join_small_loops`."""
    flags = os.environ.get("XLA_FLAGS", "")
    _, _, bound = flags.partition(_THRESHOLD)
    digits = re.match(r"\d*", bound)
    enough = digits is not None and int(digits[0] or 0) >= SMALL_LOOP_BYTES
    return enough and _PASS not in flags and jax.default_backend() == "cpu"


def vmap_in_turn(function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
    """Return ``jax.vmap(function, in_axes)`` that computes one lane after the other.

    Where small loops are joined, these lanes take less time than lanes together, which need a kernel for each
    operation and in every loop wait for the slowest among them. An outer ``jax.vmap`` takes turns, too, or
    what writes at an index would be a scatter, which is never joined; so the function must be given all
    that such a vmap may batch, and not close over it: JAX raises AssertionError.
    """
    return jax.vmap(jax.custom_batching.sequential_vmap(function), in_axes)


def vmap_runs(function: Callable[..., Any], in_axes: Any = 0, *, in_turn: bool) -> Callable[..., Any]:
    """Return ``jax.vmap(function, in_axes)``, by :func:`vmap_in_turn` where lanes are to take turns."""
    return (vmap_in_turn if in_turn else jax.vmap)(function, in_axes)


def jit_lanes(function: Callable[..., Any], statics: int, in_axes: Any) -> Callable[..., Any]:
    """Return the jitted function of (in_turn, *statics, *arrays) that maps ``function`` over lanes.

    Args:
      function: of static arguments and then of arrays.
      statics: how many arguments are static; ``in_turn`` comes before them: whether lanes are computed one
        after the other, by :func:`vmap_in_turn`, or all together, by ``jax.vmap``.
      in_axes: of the arrays, as in ``jax.vmap``.
    """

    def mapped(in_turn: bool, *arguments: Any) -> Any:
        one = functools.partial(function, *arguments[:statics])
        return vmap_runs(one, in_axes, in_turn=in_turn)(*arguments[statics:])

    return jax.jit(mapped, static_argnums=tuple(range(statics + 1)))
