"""Training runs: plan, presets, loop, learning curve, several seeds at once, ablation."""

from qos_jax.training.plan import TrainPlan, load_plan, make_train
from qos_jax.training.presets import PRESETS
from qos_jax.training.run import execute_training, open_training
from qos_jax.training.scenario import Scenario, sample_params
from qos_jax.training.scenario_config import ScenarioConfig
from qos_jax.training.train_config import EvaluationConfig, TrainConfig

__all__ = [
    "make_train",
    "TrainConfig",
    "PRESETS",
    "load_plan",
    "TrainPlan",
    "open_training",
    "execute_training",
    "ScenarioConfig",
    "EvaluationConfig",
    "Scenario",
    "sample_params",
]
