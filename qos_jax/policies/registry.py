"""Resolve what users call policies: registered names, groups of them, and folders of learned routers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from qos_jax.checks import check_one_of
from qos_jax.errors import input_error
from qos_jax.policies import affinity, heuristics, oracles
from qos_jax.policies.greedy_params import greedy_params, load_aware_params, measured_params
from qos_jax.policies.types import NOTHING, PREDICTIONS, PROFILES, QUEUES, TRUTH, Policy
from qos_jax.runs.checkpoint_record import CHECKPOINTS

HEURISTICS = (
    "random",
    "round_robin",
    "shortest_queue",
    "least_work",
    "power_of_two",
    "best_quality",
    "measured_greedy",
    "quality_within_limit",
    "impact_greedy",
    "projected_greedy",
    "load_aware_greedy",
)
# Made for prefix caching, so in no group: they are named where requests share prefixes.
AFFINITY = ("session_affinity", "prefix_load")
ORACLES = ("clairvoyant_greedy",)
# A bound on any policy's QoS, computed without simulating: `oracles.upper_bound`.
BOUNDS = ("upper_bound",)
# Replays an assignment that comes with the requests, so it only runs where one is given.
REPLAYS = ("assigned",)
# Behind the name of a router that may drop requests: the same router, which drops none.
NEVER_DROPS = "@never_drops"
# Both are in every table that groups make, so that it shows what dropping is worth.
_SHOWN_TWICE = ("projected_greedy", "load_aware_greedy")
# Default parameters of those that have any: they drop, where allowed, a request that no expert gains from.
_PARAMS: dict[str, Callable[..., Any]] = {
    "measured_greedy": measured_params,
    "impact_greedy": greedy_params,
    "projected_greedy": greedy_params,
    "load_aware_greedy": load_aware_params,
    "clairvoyant_greedy": load_aware_params,
}
# What those go by that do not read profiles.
_KNOWS = {
    "random": NOTHING,
    "round_robin": NOTHING,
    "assigned": NOTHING,
    "shortest_queue": QUEUES,
    "power_of_two": QUEUES,
    **dict.fromkeys(AFFINITY, QUEUES),
    "least_work": PREDICTIONS,
    "best_quality": PREDICTIONS,
    "measured_greedy": PREDICTIONS,
    **dict.fromkeys((*ORACLES, *BOUNDS), TRUTH),
}
_MEASURING = ("measured_greedy",)  # they go by what they measure of answers
NEVER_DROPPING = tuple(name + NEVER_DROPS for name in _PARAMS)
KNOWN = (*HEURISTICS, *AFFINITY, *ORACLES, *BOUNDS, *REPLAYS, *NEVER_DROPPING)
# Names that stand for several.
_HEURISTICS = (*HEURISTICS, *(name + NEVER_DROPS for name in _SHOWN_TWICE))
GROUPS = {"all": (*_HEURISTICS, *ORACLES, *BOUNDS), "heuristics": _HEURISTICS}

CHECKPOINT = "checkpoint"  # the field that learned routers are given in
CHECKPOINT_HELP = (
    "learned router: folder of a training run (its best checkpoint) or of one checkpoint; NAME=DIR names it, "
    f"and as NAME{NEVER_DROPS}=DIR it drops nothing; in evaluate, folders of one NAME are training runs of "
    "one router"
)
_RUN = re.compile(r"#\d+")  # no name that a user gives has a #
_FILE_NAME = re.compile(r"\w[\w.+@-]*")  # a learned router's name is that of a file of the run folder, too
_STEP = re.compile(r"step_0*(\d+)")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The policies of a run, in the order given; see :func:`resolve`."""

    names: tuple[str, ...]  # registered ones, each once, bounds among them
    policies: tuple[Policy, ...]  # of those that route
    checkpoints: dict[str, Path]  # folders of learned routers, by the name that tables call them

    @property
    def bounds(self) -> tuple[str, ...]:
        """The names that are bounds."""
        return tuple(name for name in self.names if name in BOUNDS)

    @property
    def routers(self) -> tuple[str, ...]:
        """The names of all that route, learned ones last."""
        return (*(policy.name for policy in self.policies), *self.checkpoints)


def resolve(
    names: Sequence[str],
    checkpoint: Sequence[str] = (),
    *,
    allow_drop: bool = True,
    stochastic: bool = False,
    with_bounds: bool = True,
    with_measuring: bool = True,
) -> Chosen:
    """Resolve the policies that a user names.

    Args:
      names: registered names, or names of ``GROUPS``.
      checkpoint: learned routers, ``DIR`` or ``NAME=DIR`` each; see :func:`named_checkpoints`.
      allow_drop: whether the greedy ones may drop a request that no expert gains from; where none may, groups
        come without those named ``NEVER_DROPS``, which would be there twice.
      stochastic: whether learned routers draw their actions, so that there must be one.
      with_bounds: whether bounds may be named; else the groups come without them.
      with_measuring: whether groups hold those that go by what they measure themselves.

    Raises:
      InputError: an unknown name, with the nearest known one; nothing that routes; a fault of
        :func:`policy` or :func:`named_checkpoints`.
    """
    found: list[str] = []
    for item in names:
        left_out = (*(() if with_bounds else BOUNDS), *(() if allow_drop else NEVER_DROPPING))
        left_out = (*left_out, *(() if with_measuring else _MEASURING))
        found += [name for name in GROUPS[item] if name not in left_out] if item in GROUPS else [item]
    found = list(dict.fromkeys(found))
    routing = [name for name in found if name not in BOUNDS or not with_bounds]
    policies = [policy(name, allow_drop=allow_drop) for name in routing]
    folders = named_checkpoints(checkpoint, (*GROUPS, *KNOWN))
    if stochastic and not folders:
        raise input_error("only learned routers draw", field="stochastic", remedy="give --checkpoint=DIR")
    if not policies and not folders:
        raise input_error("names no policy that routes", field="policies", remedy="give e.g. heuristics")
    return Chosen(tuple(found), tuple(policies), folders)


def policy(name: str, *, allow_drop: bool = True, assignment: jax.Array | None = None) -> Policy:
    """Return the policy called ``name`` with its default parameters.

    Args:
      name: one of ``HEURISTICS``, ``AFFINITY``, ``ORACLES``, ``REPLAYS`` or ``NEVER_DROPPING``.
      allow_drop: whether the greedy ones may drop a request that no expert gains from.
      assignment: [T] int32, for ``assigned``.

    Raises:
      InputError: an unknown name, one of ``BOUNDS``, or ``assigned`` without an assignment.
    """
    check_one_of("policy", name, KNOWN)
    if name in BOUNDS:
        fault = f"{name!r} is a bound computed without simulating, so it routes nothing"
        remedy = f"use one of {', '.join((*HEURISTICS, *ORACLES, *REPLAYS))}"
        raise input_error(fault, field="policy", remedy=remedy)
    if name in REPLAYS and assignment is None:
        fault = f"policy {name!r} has no assignment to replay"
        raise input_error(fault, field="policy", remedy="give the requests an 'expert' column")
    rule = name.removesuffix(NEVER_DROPS)
    drops = allow_drop and rule == name
    params: Any = _PARAMS[rule](allow_drop=drops) if rule in _PARAMS else None
    if name in REPLAYS:
        params = jnp.asarray(assignment, jnp.int32)
    module = oracles if rule in ORACLES else affinity if rule in AFFINITY else heuristics
    function = getattr(module, rule)
    summary = (function.__doc__ or "").strip().split("\n")[0]
    kind = "oracle" if rule in ORACLES else "router"
    knows = _KNOWS.get(rule, PROFILES)
    given: dict[str, Any] = {kind: function, "measures": rule in _MEASURING, "is_small": True}
    return Policy(name, summary, knows=knows, params=params, **given)


def router_of(name: str) -> str:
    """Return the router of which ``name`` is a training run, or the name itself of any other."""
    return _RUN.sub("", name)


def with_routers_of_runs(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, and those of the routers of which some are training runs."""
    return tuple(dict.fromkeys([*names, *(router_of(name) for name in names)]))


def named_checkpoints(given: Sequence[str], taken: Collection[str]) -> dict[str, Path]:
    """Return the folder of each learned router, by the name that tables call it.

    Different folders that are given one NAME are training runs of one router, called ``NAME#1`` and so on;
    see :func:`router_of`.

    Args:
      given: ``DIR`` or ``NAME=DIR`` each; by default the name is that of the run's folder, and for one
        checkpoint of a run, ``RUN@STEP``.
      taken: names that it may not have: those of the registry.

    Raises:
      InputError: an empty folder name, or a name that is taken, or no file name; two folders of one default
        name, of names that differ in case alone, or one folder twice under one name.
    """
    folders: dict[str, list[Path]] = {}
    known = {other.casefold() for other in taken}
    for text in given:
        name, folder, is_named = _parsed(text)
        if name.casefold() in known:
            remedy = f"name it otherwise: --{CHECKPOINT}=NAME={folder}"
            raise input_error(f"{name!r} is the name of another policy", field=CHECKPOINT, remedy=remedy)
        others = [other.resolve() for other in folders.get(name, ())]
        is_run = is_named and name in folders and folder.resolve() not in others
        if name.casefold() in {other.casefold() for other in folders} and not is_run:
            remedy = f"name each once, or runs of one router alike: --{CHECKPOINT}=NAME=DIR"
            raise input_error(f"names {name!r} twice", field=CHECKPOINT, remedy=remedy)
        folders.setdefault(name, []).append(folder)
    return {
        name if len(runs) == 1 else f"{name}#{number}": folder
        for name, runs in folders.items()
        for number, folder in enumerate(runs, start=1)
    }


def _parsed(text: str) -> tuple[str, Path, bool]:
    """Return name, folder and whether it was named: ``DIR``, which may have a = in it, or ``NAME=DIR``."""
    name, equals, rest = text.partition("=")
    named = bool(equals) and "/" not in name and not Path(text).is_dir()
    path = rest if named else text
    if not path:
        remedy = f"give --{CHECKPOINT}=DIR, a training run"
        raise input_error("names no folder", field=CHECKPOINT, remedy=remedy)
    folder = Path(path)
    if not named:
        return _default_name(folder), folder, False
    if not _FILE_NAME.fullmatch(name):
        fault = f"{name!r} is no name that a file can have everywhere"
        remedy = "use letters, digits and _.+@-, the first a letter, a digit or _"
        raise input_error(fault, field=CHECKPOINT, remedy=remedy)
    return name, folder, True


def _default_name(folder: Path) -> str:
    whole = folder.absolute()
    step = _STEP.fullmatch(whole.name)
    if step and whole.parent.name == CHECKPOINTS:
        name = f"{whole.parent.parent.name}@{step[1]}"
    else:
        name = whole.parent.name if whole.name == CHECKPOINTS else whole.name
    return re.sub(r"[^\w.+@-]", "_", name).lstrip(".+@-") or "learned"
