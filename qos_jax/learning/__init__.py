"""Learning algorithms: each one a learner, made for an environment, a network and its configuration."""

from qos_jax.learning.distil import DistilConfig, make_distil
from qos_jax.learning.ppo import PPOConfig, make_ppo
from qos_jax.learning.sac import SACConfig, make_sac
from qos_jax.learning.search import SearchConfig, make_search
from qos_jax.learning.types import Learner, Metrics, SampleParams

__all__ = [
    "Learner",
    "make_search",
    "SearchConfig",
    "make_ppo",
    "PPOConfig",
    "make_sac",
    "SACConfig",
    "make_distil",
    "DistilConfig",
    "SampleParams",
    "Metrics",
]
