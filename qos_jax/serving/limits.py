"""Service levels: the limits on latency that a request must keep for its answer to count."""

from __future__ import annotations

import functools
import operator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

# Seconds per output token that times are compared with where no limit says how fast tokens must come.
_USUAL_PACE_S = 0.1


@struct.dataclass
class ServiceLimits:
    """Limits on one request, seconds; equality meets a limit, and infinity is met by every completed one.

    A limit that is None is no part of a compiled program; one that is infinite gives the same results but for
    the rounding of another program.
    """

    latency_limit_s: jax.Array  # [] float32, L: E2E latency per output token, network included
    ttft_limit_s: jax.Array | None = None  # [] float32, time to first token, at the server: no network
    tpot_limit_s: jax.Array | None = None  # [] float32, per output token after the first, at the server
    e2e_limit_s: jax.Array | None = None  # [] float32, arrival to last token, network included

    @property
    def needs_ttft(self) -> bool:
        """Whether a limit depends on when the first token comes; static."""
        return self.ttft_limit_s is not None or self.tpot_limit_s is not None

    @property
    def is_plain(self) -> bool:
        """Whether L alone is set; static."""
        return not self.needs_ttft and self.e2e_limit_s is None

    @property
    def pace_s(self) -> jax.Array:
        """[] float32, seconds per output token to compare times with: L, else the limit on TPOT if finite."""
        usual = jnp.float32(_USUAL_PACE_S)
        if self.tpot_limit_s is not None:
            usual = jnp.where(jnp.isfinite(self.tpot_limit_s), self.tpot_limit_s, usual)
        return jnp.where(jnp.isfinite(self.latency_limit_s), self.latency_limit_s, usual)


LIMITS = tuple(ServiceLimits.__dataclass_fields__)  # names, in order


def as_limits(limits: Any) -> ServiceLimits:
    """Return the limits given, or those of L alone, given as a number or an array of s/token."""
    return limits if isinstance(limits, ServiceLimits) else ServiceLimits(latency_limit_s=limits)


def limits_kept(
    limits: ServiceLimits,
    latency_s: Any,
    ttft_s: Any,
    output_tokens: Any,
    network_rtt_s: Any,
    xp: ModuleType = jnp,
) -> dict[str, Any]:
    """Return which completed requests keep each limit that is set, by its name in ``LIMITS``, [...] bool.

    A request of one output token has no TPOT and keeps any limit on it.

    Args:
      limits: leaves that broadcast to the other arguments.
      latency_s: [...] E2E latency, seconds, network included.
      ttft_s: [...] time to first token at the server, seconds.
      output_tokens: [...] tokens, at least 1, of the type of ``latency_s``.
      network_rtt_s: [...] seconds of ``latency_s`` that are the network's.
      xp: ``jax.numpy`` or ``numpy``.
    """
    kept = {"latency_limit_s": latency_s / output_tokens <= limits.latency_limit_s}
    if limits.ttft_limit_s is not None:
        kept["ttft_limit_s"] = ttft_s <= limits.ttft_limit_s
    if limits.tpot_limit_s is not None:
        tpot_s = (latency_s - network_rtt_s - ttft_s) / xp.maximum(output_tokens - 1, 1)
        kept["tpot_limit_s"] = (output_tokens <= 1) | (tpot_s <= limits.tpot_limit_s)
    if limits.e2e_limit_s is not None:
        kept["e2e_limit_s"] = latency_s <= limits.e2e_limit_s
    return kept


def all_kept(kept: dict[str, Any]) -> Any:
    """Return which requests keep every limit that is set, [...] bool."""
    return functools.reduce(operator.and_, kept.values())
