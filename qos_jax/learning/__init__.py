"""Learning algorithms, and the experience that they learn from."""

from qos_jax.learning.types import Learner, Metrics, SampleParams

__all__ = ["Learner", "Metrics", "SampleParams"]
