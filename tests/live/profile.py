"""The profile of the fake servers."""

from qos_jax.serving.reference import ReferenceProfile

SMALL = ReferenceProfile(4, 8, 512, 4000, 0.01, 1e-4, 0.0, 0.01, 1e-4, 1e-7)
