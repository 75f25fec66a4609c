"""Presets: named settings that ``launch.train`` starts from."""

from __future__ import annotations

import dataclasses

from qos_jax.learning.distil import DistilConfig
from qos_jax.learning.ppo import PPOConfig
from qos_jax.learning.sac_config import SACConfig
from qos_jax.learning.search import SearchConfig
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.han import HANConfig
from qos_jax.training.scenario_config import ScenarioConfig
from qos_jax.training.train_config import EvaluationConfig, TrainConfig
from qos_jax.training.world_ranges import WorldRanges

# One layer of attention, where networks are trained: two cost three times as much. The presets edge6 and
# quick search the numbers of the net gain alone; see data/results/ablations.md.
_HAN = HANConfig(layers=1, hidden=32, heads=4)
_EDGE6 = TrainConfig(
    agent="none",
    network=NetworkConfig(han=_HAN),
    search=SearchConfig(updates=24, candidates=16, num_envs=48),
    distil=DistilConfig(updates=0),
    evaluation=EvaluationConfig(every=12, seeds=16),
    log_every=2,
    checkpoint_every=5,
)

# For the demonstration: two minutes on two cores. Its distil settings apply with --distil.updates.
_QUICK = TrainConfig(
    agent="none",
    network=NetworkConfig(han=_HAN),
    search=SearchConfig(num_envs=12),
    distil=DistilConfig(updates=0, num_envs=192, capacity=16384, batch_size=512),
    evaluation=EvaluationConfig(every=10, seeds=8, num_requests=1024),
    log_every=1,
    checkpoint_every=5,
)

# A router that knows predictions and what it measures, no profile: from scratch, it learns what servers do to
# each other; then its price of crowding is searched. The policy's loss is off, see
# data/results/predictions.md. Its reward is undiscounted, since a discounted potential pays late completions
# less and teaches to drop.
_PREDICTIONS = TrainConfig(
    agent="ppo",
    discount=1.0,
    network=NetworkConfig(
        information="predictions", han=_HAN, residual=False, learned_impact=True, calibrate_quality=False
    ),
    search=SearchConfig(updates=12, num_envs=48),
    distil=DistilConfig(updates=0),
    ppo=PPOConfig(
        num_envs=256,
        total_updates=128,
        epochs=2,
        minibatches=16,
        learning_rate=1e-3,
        final_learning_rate=0.05,
        policy_weight=0.0,
        entropy_weight=0.0,
        reward_scale=0.02,
        average=0.97,
    ),
    evaluation=EvaluationConfig(every=32),
)

# Randomised reality: four routers with shares of their own act on the twin of a scrape that is 1 to 30 s old,
# servers are off their profiles, drift, slow down and fail. The numbers of the net gain are searched.
_REALITY = dataclasses.replace(
    _EDGE6,
    network=NetworkConfig(encoder="sets", hidden=32, believes=True),
    search=SearchConfig(updates=20, candidates=16, num_envs=32, steps=768),
    world=WorldRanges(
        view="twin",
        routers=4,
        retry=True,
        share_log_std=(0.0, 1.0),
        scrape_period_s=(1.0, 30.0),
        scrape_failure=(0.0, 0.2),
        pace_log_std=(0.0, 0.5),
        drift_log_std=(0.0, 0.3),
        drift_time_s=(20.0, 120.0),
        slowdown_per_s=(0.0, 0.002),
        outage_per_s=(0.0, 0.0005),
    ),
    evaluation=EvaluationConfig(every=5, workloads=("poisson", "mmpp"), loads=(0.75, 1.1)),
    log_every=1,
)

# The paper's setting: its fleets, limit and penalty, 1 to 6 Poisson arrivals a second; HAN-SAC from scratch,
# which drops nothing.
# Its reward comes when a request completes, many decisions after the choice: returns of 32 steps bridge that.
_PAPER6 = TrainConfig(
    fleet="paper6",
    agent="sac",
    reward="paper",
    scenario=ScenarioConfig(
        arrival_rate=(1.0, 6.0),
        burst_factor=(1.0, 1.0),
        diurnal_swing=(0.0, 0.0),
        limit_scale=(1.0, 1.0),
        speed_log_std=0.0,
        part_log_std=0.0,
        error_level=(1.0, 1.0),
        trace_share=0.0,
    ),
    network=NetworkConfig(han=_HAN, residual=False, allow_drop=False),
    search=SearchConfig(updates=0),
    distil=DistilConfig(updates=0),
    sac=SACConfig(
        steps_per_update=64,
        gradient_steps=16,
        n_step=32,
        replay_capacity=200_000,
        warmup_decisions=8_192,
        critic_only_steps=300,
        total_updates=120,
    ),
    evaluation=EvaluationConfig(
        every=20, workloads=("poisson",), loads=(), arrival_rates=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    ),
    checkpoint_every=20,
)

_PAPER3 = dataclasses.replace(_PAPER6, fleet="paper3")
PRESETS = {
    "edge6": _EDGE6,
    "quick": _QUICK,
    "predictions": _PREDICTIONS,
    "reality": _REALITY,
    "paper3": _PAPER3,
    "paper6": _PAPER6,
}
