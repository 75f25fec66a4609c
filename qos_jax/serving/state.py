"""The state of N experts: fixed slots of requests in order of arrival, and each expert's lead."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from qos_jax.checks import COUNT, check_one_of, check_range

LLAMA_CPP = "llama_cpp"
SCHEDULERS = ("prefill_first", "chunked_prefill", LLAMA_CPP)


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """Static sizes of a fleet; hashable, so usable as a static argument of ``jax.jit``.

    Raises:
      InputError: a size below 1, or an unknown scheduler.
    """

    num_experts: int  # N
    running_slots: int  # the fleet's largest max_running
    waiting_slots: int  # the fleet's largest max_waiting
    scheduler: str = "prefill_first"  # one of SCHEDULERS

    def __post_init__(self) -> None:
        check_range(self, ("num_experts", "running_slots", "waiting_slots"), COUNT)
        check_one_of("scheduler", self.scheduler, SCHEDULERS)

    @property
    def slots(self) -> int:
        """Slots of an expert, K.

        An arrival is accepted only while fewer than ``max_waiting`` wait, so running and waiting
        requests together, preempted ones included, never exceed ``max_running + max_waiting``.
        """
        return self.running_slots + self.waiting_slots


@struct.dataclass
class ServingState:
    """N experts with K slots each, as of now; no absolute clock, so a trace may last for weeks.

    The slots of an expert are in order of arrival. A slot is live from its request's arrival to its
    completion; admission is FIFO and preemption takes the latest, so **the running requests are
    always the earliest of the live ones**: every FIFO rule is a prefix sum over slots. A dead slot
    keeps the outcome of its request until a later arrival overwrites it.

    Token counts are those at the END of the iteration in progress, which ends ``lead_s`` from now: a
    live running request with no tokens left completes then.
    """

    request_id: jax.Array  # [N, K] int32, -1 = never used
    live: jax.Array  # [N, K] bool, arrived and not completed
    running: jax.Array  # [N, K] bool, in the batch; live and not running = waiting
    age_s: jax.Array  # [N, K] float32, seconds since arrival (live slots)
    context_tokens: jax.Array  # [N, K] int32, prompt + generated tokens
    left_tokens: jax.Array  # [N, K] int32, output tokens not yet generated
    prefill_left_tokens: jax.Array  # [N, K] int32, context not yet prefilled (chunked prefill, running)
    ttft_s: jax.Array  # [N, K] float32, seconds from arrival to first token, at the server; -1 = none yet
    latency_s: jax.Array  # [N, K] float32, E2E latency in seconds, network included; -1 = not known yet
    preemptions: jax.Array  # [N, K] int32
    lead_s: jax.Array  # [N] float32, seconds from now to the end of the iteration in progress; 0 = none

    @property
    def waiting(self) -> jax.Array:
        """[N, K] bool: queued, and not in the batch."""
        return self.live & ~self.running


def empty_state(config: ServingConfig) -> ServingState:
    """Return N idle experts with every slot free."""
    shape = (config.num_experts, config.slots)

    def ints(value: int = 0) -> jax.Array:
        return jnp.full(shape, value, jnp.int32)

    def floats(value: float = 0.0) -> jax.Array:
        return jnp.full(shape, value, jnp.float32)

    def flags() -> jax.Array:
        return jnp.zeros(shape, jnp.bool_)

    return ServingState(
        request_id=ints(-1),
        live=flags(),
        running=flags(),
        age_s=floats(),
        context_tokens=ints(),
        left_tokens=ints(),
        prefill_left_tokens=ints(),
        ttft_s=floats(-1.0),
        latency_s=floats(-1.0),
        preemptions=ints(),
        lead_s=jnp.zeros((config.num_experts,), jnp.float32),
    )
