"""An ablation: train every variant in a folder of its own, then compare them all on the same requests."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qos_jax.checks import COUNT, check_range, check_some_of
from qos_jax.errors import input_error
from qos_jax.evaluation.comparison import (
    ComparisonConfig,
    draw_cases,
    execute_comparison,
    load_comparison,
    work_requests,
)
from qos_jax.evaluation.comparison_table import Comparison
from qos_jax.learning.ppo import PPOConfig
from qos_jax.options import option
from qos_jax.policies.greedy_params import SEARCHED
from qos_jax.policies.registry import router_of
from qos_jax.policies.router_input import searched_numbers
from qos_jax.runs.folder import check_run_folder, open_run_folder
from qos_jax.runs.progress import progress
from qos_jax.simulation.case_config import CaseConfig
from qos_jax.training.plan import load_plan
from qos_jax.training.presets import PRESETS
from qos_jax.training.run import execute_training, open_training
from qos_jax.training.train_config import TrainConfig
from qos_jax.workload.named_table import ALL_ROWS, SPLITS
from qos_jax.workload.setting import limit_settings

COMPARED = "comparison"  # folder of the comparison, beside those of the variants
FULL = "full"  # the run itself, which the others are variants of

_Change = Callable[[TrainConfig], TrainConfig]  # of the full run to a variant
_say = functools.partial(tqdm.write, file=sys.stderr)


def trained_decisions(config: TrainConfig) -> int:
    """Return the decisions that a run takes in all, trials included: its budget."""
    updates = {"search": config.search.updates, "distil": config.distil.updates}
    if config.agent != "none":
        updates[config.agent] = getattr(config, config.agent).total_updates
    return sum(count * _update_decisions(config, phase) for phase, count in updates.items())


def _update_decisions(config: TrainConfig, phase: str) -> int:
    """Return the decisions of one update of a phase, trials included."""
    steps_per_environment = {
        "search": config.search.candidates * config.search.steps,
        "distil": config.distil.steps + config.distil.candidates * config.distil.horizon,
        "ppo": config.ppo.rollout_steps,
        "sac": config.sac.steps_per_update,
    }
    return getattr(config, phase).num_envs * steps_per_environment[phase]


def variants(names: Sequence[str], full: TrainConfig) -> dict[str, TrainConfig]:
    """Return the configurations of the named variants of ``full``, by name.

    Raises:
      InputError: none, an unknown or a repeated name; a variant that ``full`` leaves no budget for.
    """
    check_some_of("variants", names, VARIANTS)
    return {name: VARIANTS[name][1](full) for name in names}


def _search(numbers: tuple[str, ...]) -> _Change:
    """Return a variant that searches these numbers only."""

    def change(full: TrainConfig) -> TrainConfig:
        known = searched_numbers(full.network.information)
        some = tuple(name for name in numbers if name in known)
        return dataclasses.replace(full, search=dataclasses.replace(full.search, numbers=some))

    return change


def _network(**choices: Any) -> _Change:
    """Return a variant with another network, trained as the full run trains one.

    With a learned impact that is the same run; else distillation from the start, without a search.
    """

    def change(full: TrainConfig) -> TrainConfig:
        network = dataclasses.replace(full.network, **choices)
        if full.network.learned_impact:
            return dataclasses.replace(full, network=network)
        updates = _updates(full, "distil")
        distil = dataclasses.replace(full.distil, updates=updates)
        return _alone(full, "none", full.reward, updates, network=network, distil=distil)

    return change


def _distilled(**choices: Any) -> _Change:
    """Return a variant that distils the net gain by profiles into a network with these choices."""
    change = _network(**choices)

    def checked(full: TrainConfig) -> TrainConfig:
        if full.network.learned_impact:
            fault = "distils the net gain by profiles, which this run does not know"
            raise input_error(fault, field="variants", remedy="leave it out, or use another preset")
        return change(full)

    return checked


def _agent_alone(agent: str, reward: str) -> _Change:
    """Return a variant of PPO or SAC from the start, for as many decisions as the full run takes.

    Where the full run learns an impact, the variant has none: its policy is learned from the reward alone, by
    PPO's usual weights if the full run's policy is not trained, and from nothing.
    """

    def change(full: TrainConfig) -> TrainConfig:
        updates = _updates(full, agent)
        part: Any = dataclasses.replace(getattr(full, agent), total_updates=updates)
        if not full.network.learned_impact:
            return _alone(full, agent, reward, updates, **{agent: part})
        network = dataclasses.replace(full.network, learned_impact=False)
        if agent == "ppo" and full.ppo.policy_weight == 0.0:
            weights = {name: getattr(PPOConfig(), name) for name in ("policy_weight", "entropy_weight")}
            part = dataclasses.replace(part, **weights)
        return _alone(full, agent, reward, updates, network=network, start=None, **{agent: part})

    return change


def _updates(full: TrainConfig, agent: str) -> int:
    """Return the updates of an agent, or of distillation, that the full run's budget allows."""
    budget, decisions = trained_decisions(full), _update_decisions(full, agent)
    if budget < decisions:
        fault = f"{budget:,} decisions are less than one update of {agent}"
        raise input_error(fault, field="variants", remedy=f"train longer, or lower {agent}.num_envs")
    return budget // decisions


def _alone(full: TrainConfig, agent: str, reward: str, updates: int, **changes: Any) -> TrainConfig:
    """Return a run of one phase, evaluated and saved as many times as the full run."""
    agents = 0 if full.agent == "none" else getattr(full, full.agent).total_updates
    pace = updates / (full.search.updates + full.distil.updates + agents)

    def paced(every: int) -> int:
        return max(1, round(every * pace))

    one_phase: dict[str, Any] = {
        "agent": agent,
        "reward": reward,
        "search": dataclasses.replace(full.search, updates=0),
        "distil": dataclasses.replace(full.distil, updates=0),
        "log_every": paced(full.log_every),
        "checkpoint_every": paced(full.checkpoint_every),
        "evaluation": dataclasses.replace(full.evaluation, every=paced(full.evaluation.every)),
    }
    return dataclasses.replace(full, **{**one_phase, **changes})


_CONSTANTS = tuple(name for name in SEARCHED if "_by_" not in name or name == "price_by_occupancy")
_OF_LOAD = tuple(name for name in SEARCHED if name.endswith(("_by_load", "_by_burst")))


# What each variant is, in words, and how to make it of the full run.
VARIANTS: dict[str, tuple[str, _Change]] = {
    FULL: ("the run as configured", lambda full: full),
    "constants": ("search of constants: no power of load, request or occupancy but one", _search(_CONSTANTS)),
    "loads": ("search of the constants and of the powers of the load", _search((*_CONSTANTS, *_OF_LOAD))),
    "distil": ("no search: distillation alone, from load_aware_greedy", _distilled()),
    "sets": ("a network without attention and slots: experts as a set", _network(encoder="sets")),
    "flat": ("a network without a graph: an MLP on all features in a row", _network(encoder="flat")),
    "no_residual": ("distillation of scores that start from nothing", _distilled(residual=False)),
    "no_impact": (
        "distillation with nothing from the action impact estimator, neither features nor residual",
        _distilled(impact_features=False, residual=False),
    ),
    "no_calibration": ("distillation, predicted qualities as they are", _distilled(calibrate_quality=False)),
    "ppo": ("PPO alone, potential-based reward", _agent_alone("ppo", "potential")),
    "ppo_paper": ("PPO alone, the paper's reward", _agent_alone("ppo", "paper")),
    "sac": ("SAC alone, potential-based reward", _agent_alone("sac", "potential")),
    "sac_paper": ("SAC alone, the paper's reward", _agent_alone("sac", "paper")),
}


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """What to train, and what to compare it on: the fleet, limit and table are those of the training."""

    variants: tuple[str, ...] = option(tuple(VARIANTS), help=f"what to train: some of {', '.join(VARIANTS)}")
    policies: tuple[str, ...] = ("projected_greedy", "shortest_queue")  # compared with them
    baseline: str = FULL  # the policy or variant that differences are taken to
    runs: int = 1  # of each variant, by the seed of the full run and those after it
    train: TrainConfig = PRESETS["edge6"]  # the full run
    cases: CaseConfig = dataclasses.field(
        default_factory=lambda: CaseConfig(workloads=("poisson", "mmpp", "azure_conv"))
    )

    def __post_init__(self) -> None:
        check_range(self, ("runs",), COUNT)


def run_ablation(
    config: AblationConfig, out: str | Path, *, plot: bool, overwrite: bool = False
) -> Comparison:
    """Train what is not trained yet, compare, and return the comparison.

    Every variant goes on from its last checkpoint, so an ablation that was stopped is simply run again, with
    more runs, too. A variant's first run is in ``out/NAME``, the others are in ``out/NAME_seed_SEED``; the
    comparison is in ``out/comparison``.

    Raises:
      InputError: a variant that is unknown or cannot be trained, a folder that holds another run, a
        comparison that does not fit; all of it before anything trains.
      KeyboardInterrupt: it was stopped.
    """
    root, train = Path(out), config.train
    plans = {
        (name, seed): load_plan(dataclasses.replace(variant, seed=seed))
        for seed in range(train.seed, train.seed + config.runs)
        for name, variant in variants(config.variants, train).items()
    }
    comparison = ComparisonConfig(
        fleet=train.fleet,
        policies=config.policies,
        baseline=config.baseline,
        scheduler=train.scheduler,
        **limit_settings(train),
        allow_drop=train.network.allow_drop,
        table=train.table,
        table_split=ALL_ROWS if train.table is None else SPLITS[2],
        cases=config.cases,
    )
    _check(comparison, config.variants)
    folders = {
        (name, seed): root / (name if seed == train.seed else f"{name}_seed_{seed}") for name, seed in plans
    }
    runs = {
        each: open_training(plan, folders[each], overwrite=overwrite, resume=not overwrite)
        for each, plan in plans.items()
    }
    for number, (name, seed) in enumerate(plans, start=1):
        which = "" if config.runs == 1 else f", seed {seed}"
        _say(f"run {number} of {len(plans)}, {name}{which}: {VARIANTS[name][0]}")
        execute_training(runs.pop((name, seed)), plot=plot)  # no longer held: a replay memory may be large
    trained = tuple(f"{name}={folder}" for (name, _), folder in folders.items())
    plan = load_comparison(dataclasses.replace(comparison, checkpoint=trained))
    check_run_folder(root / COMPARED, plan.settings, overwrite=True)
    cases = draw_cases(plan)
    folder = open_run_folder(root / COMPARED, plan.settings, overwrite=True, resume=True)
    with progress(work_requests(plan, cases)) as advance:
        return execute_comparison(plan, cases, folder, plot=plot, on_progress=advance)


def _check(comparison: ComparisonConfig, names: Sequence[str]) -> None:
    """Find the faults of a comparison whose learned routers are still to be trained."""
    baseline = comparison.baseline
    if router_of(baseline) not in (*comparison.policies, *names):
        fault = f"{baseline!r} is neither a policy nor a variant of this ablation"
        remedy = f"use one of {', '.join((*comparison.policies, *names))}"
        raise input_error(fault, field="baseline", remedy=remedy)
    known = comparison.policies or ("random",)
    load_comparison(dataclasses.replace(comparison, policies=known, baseline=known[0]))
