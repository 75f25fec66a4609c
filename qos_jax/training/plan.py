"""From a configuration to what trains: files read, environments built, one learner per phase."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from qos_jax.errors import InputError, input_error
from qos_jax.learning.distil import make_distil
from qos_jax.learning.ppo import make_ppo
from qos_jax.learning.sac import make_sac
from qos_jax.learning.search import make_search
from qos_jax.learning.types import Learner, Metrics
from qos_jax.policies.saved import LearnedRouter, load_router
from qos_jax.policies.types import PREDICTIONS
from qos_jax.routing import EnvConfig, EnvParams, RoutingEnvironment
from qos_jax.serving import ServingConfig
from qos_jax.training.hyper import Together, unchecked
from qos_jax.training.scenario import Scenario, recorded_of, sample_params
from qos_jax.training.train_config import TrainConfig
from qos_jax.workload.drawn_requests import Source
from qos_jax.workload.named_table import ALL_ROWS, SPLITS, split_rows
from qos_jax.workload.setting import Setting, limit_settings, open_setting

# Of the experts drawn for a fleet without figures: the models must not change with the seed of training, and
# are those that a comparison draws by default.
_FIGURES_SEED = 0

# (key) -> (network parameters, metrics of every update by phase, leaves [updates])
Train = Callable[[jax.Array], tuple[Any, dict[str, Metrics]]]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with a learner of its own, which starts from the parameters of the one before."""

    name: str  # "search", "distil" or the agent's
    learner: Learner
    updates: int


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """A training run that has passed every check; see :func:`load_plan`."""

    config: TrainConfig
    setting: Setting  # the fleet, and the requests to train on
    held_out: Source  # what requests are drawn from to evaluate on: a table's validation rows, if it has any
    phases: tuple[Phase, ...]
    phases_of: Callable[[TrainConfig], tuple[Phase, ...]]  # the same of a run with other hyper-parameters
    start: LearnedRouter | None = None  # whose parameters the first phase starts from

    @property
    def total_updates(self) -> int:
        """Updates of all phases."""
        return sum(phase.updates for phase in self.phases)

    @property
    def start_params(self) -> Any:
        """Parameters that the first phase starts from; None = its own."""
        return None if self.start is None else self.start.policy.params


def load_plan(config: TrainConfig) -> TrainPlan:
    """Read the files of a training run, check that they fit, and build its learners; nothing is written.

    Raises:
      InputError: naming file, row, field and remedy of the first fault found.
    """
    setting = open_setting(
        config.fleet,
        scheduler=config.scheduler,
        prefix_entries=config.prefix_entries,
        **limit_settings(config),
        table=config.table,
        table_split=ALL_ROWS if config.table is None else config.table_split,
        trace=config.trace,
        trace_start_s=config.trace_start_s,
        trace_end_s=config.trace_end_s,
        seed=_FIGURES_SEED,
    )
    held_out = setting.source
    if setting.table is not None:
        with contextlib.suppress(InputError):  # it has no such rows
            held_out = split_rows(setting.table, SPLITS[1])
    scenario = Scenario(
        profile=jax.tree.map(jnp.asarray, setting.fleet.profile),
        limits=jax.tree.map(jnp.float32, setting.limits),
        calibration=setting.figures,
        table=None if setting.rows is None else setting.rows.table,
        recorded=None if setting.trace is None else recorded_of(setting.trace),
    )

    def phases_of(config: TrainConfig) -> tuple[Phase, ...]:
        weight, discount = config.impact_weight, config.reward_discount
        paid = dataclasses.replace(scenario, impact_weight=weight, discount=discount)
        return _phases(config, setting.serving, paid)

    start = _start_of(config, setting.serving)
    return TrainPlan(config, setting, held_out, phases=phases_of(config), phases_of=phases_of, start=start)


def _start_of(config: TrainConfig, serving: ServingConfig) -> LearnedRouter | None:
    """Return the trained router that a run starts from, if there is one.

    Raises:
      InputError: its network is not the one to be trained, or what ``load_router`` raises.
    """
    if config.start is None:
        return None
    found = load_router("start", Path(config.start), serving, allow_drop=True, stochastic=False)
    trained, wanted = vars(found.network), vars(config.network)
    differs = next((name for name in wanted if trained[name] != wanted[name]), None)
    if differs is not None:
        fault = f"its network has {differs}={trained[differs]!r}, and {wanted[differs]!r} is to be trained"
        remedy = f"give --network.{differs} as it was trained, or its preset"
        raise input_error(fault, file=config.start, field="start", remedy=remedy)
    return found


def make_train(config: TrainConfig) -> Train:
    """Return the whole training as one function of a key, to be jitted, and vmapped over seeds.

    It takes every update of every phase, as :func:`~qos_jax.training.run.execute_training` does,
    without evaluations and checkpoints: ``jax.jit(jax.vmap(make_train(config)))(jax.random.split(key, 8))``
    trains eight routers at once.

    Raises:
      InputError: as :func:`load_plan`.
    """
    plan = load_plan(config)

    def train(key: jax.Array) -> tuple[Any, dict[str, Metrics]]:
        params, metrics = plan.start_params, {}
        for index, phase in enumerate(plan.phases):
            state = phase.learner.init(phase_key(key, index), params)
            state, metrics[phase.name] = _every_update(phase, state)
            params = phase.learner.params(state)
        return params, metrics

    return train


def phase_key(key: jax.Array, index: int) -> jax.Array:
    """Return the key of a phase, from that of the run."""
    return jax.random.fold_in(key, index)


def over_routers(plan: TrainPlan, together: Together) -> TrainPlan:
    """Return the plan with learners of R runs at once; keys, states and metrics get an axis [R]."""
    values = {}
    for name in together.names:
        given = jnp.array([setting[name] for setting in together.settings], jnp.float32)
        values[name] = jnp.repeat(given, together.seeds)

    def all_at_once(index: int, phase: Phase) -> Phase:
        def learner(values: dict[str, jax.Array]) -> Learner:
            phases = plan.phases_of(unchecked(plan.config, values)) if values else plan.phases
            return phases[index].learner

        def init(keys: jax.Array, params: Any | None = None) -> Any:
            def one(key: jax.Array, values: dict[str, jax.Array], params: Any | None) -> Any:
                return learner(values).init(key, params)

            return jax.vmap(one, in_axes=(0, 0, None if params is None else 0))(keys, values, params)

        def update(states: Any) -> tuple[Any, Metrics]:
            return jax.vmap(lambda state, values: learner(values).update(state))(states, values)

        learners = Learner(
            init=init,
            update=update,
            params=jax.vmap(phase.learner.params),
            decisions_per_update=together.count * phase.learner.decisions_per_update,
        )
        return dataclasses.replace(phase, learner=learners)

    phases = (all_at_once(index, phase) for index, phase in enumerate(plan.phases))
    return dataclasses.replace(plan, phases=tuple(phases))


def _every_update(phase: Phase, state: Any) -> tuple[Any, Metrics]:
    return jax.lax.scan(lambda state, _: phase.learner.update(state), state, None, length=phase.updates)


def environment_of(config: TrainConfig, serving: ServingConfig) -> RoutingEnvironment:
    """Return the environment that a run trains in: answers are measured for a router without profiles."""
    network = config.network
    return RoutingEnvironment(
        EnvConfig(
            serving,
            config.max_steps,
            config.reward,
            allow_drop=network.allow_drop,
            measures=network.information == PREDICTIONS,
            telemetry=config.world.choices,
        )
    )


def _phases(config: TrainConfig, serving: ServingConfig, scenario: Scenario) -> tuple[Phase, ...]:
    env = environment_of(config, serving)

    def draw(key: jax.Array) -> EnvParams:
        return sample_params(key, config.scenario, scenario, config.world, caches=config.prefix_entries > 0)

    makers: dict[str, Callable[..., Learner]]
    makers = {"search": make_search, "distil": make_distil, "ppo": make_ppo, "sac": make_sac}
    updates = {"search": config.search.updates, "distil": config.distil.updates}
    if config.agent != "none":
        agent = {config.agent: getattr(config, config.agent).total_updates}
        # The numbers of a net gain by a learned impact can be searched once it is learned.
        updates = agent | updates if config.network.learned_impact else updates | agent
    return tuple(
        Phase(name, makers[name](env, draw, config.network, getattr(config, name)), count)
        for name, count in updates.items()
        if count > 0
    )
