"""From the file that a tool left to requests with times: one registry of layouts."""

from qos_jax.logs.generic import GENERIC
from qos_jax.logs.logged import TIMES_NOTE, Logged
from qos_jax.logs.registry import LAYOUTS, columns_of, has_layout, read_logged
from qos_jax.logs.units import KNOWN, TIMES, our_names

__all__ = [
    "read_logged",
    "has_layout",
    "columns_of",
    "Logged",
    "LAYOUTS",
    "GENERIC",
    "KNOWN",
    "TIMES",
    "TIMES_NOTE",
    "our_names",
]
