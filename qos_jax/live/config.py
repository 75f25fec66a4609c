"""What a user says of a live router, checked: the servers, the policy, and what clients may do."""

from __future__ import annotations

import dataclasses
import math
import os

from qos_jax.checks import COUNT, COUNT_OR_ZERO, NON_NEGATIVE, POSITIVE, SEED, Interval, check_range
from qos_jax.errors import input_error
from qos_jax.options import check_options, option
from qos_jax.policies.registry import HEURISTICS, NEVER_DROPS
from qos_jax.serving import SCHEDULERS
from qos_jax.workload.limit_presets import LIMIT_PRESETS, PRESET_HELP


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """Which policy routes on which fleet.

    Raises:
      InputError: naming the field at fault and what to give.
    """

    fleet: str | None = None  # a fleet CSV, or the name of a shipped one: the servers as they were calibrated
    policy: str | None = option(
        None,
        help=f"who routes: one of {', '.join(HEURISTICS)}; a greedy one with {NEVER_DROPS} behind its name "
        "refuses only where a server's line is full",
    )
    checkpoint: str | None = None  # a learned router in place of a policy: folder of a run or a checkpoint
    latency_limit_s: float | None = None  # L, seconds of E2E latency per output token; inf = no limit
    ttft_limit_s: float | None = None  # time to first token, seconds at the server; none = no limit
    tpot_limit_s: float | None = None  # seconds per output token after the first, at the server
    e2e_limit_s: float | None = None  # seconds from arrival to last token, network included
    limits: str | None = option(None, help=PRESET_HELP, known=LIMIT_PRESETS)
    scheduler: str = option("chunked_prefill", known=SCHEDULERS)  # of every server; vLLM's by default
    shared_servers: bool = False  # others send requests to these servers, too
    prefix_entries: int = 0  # beginnings of prompts that each server's cache keeps, about; 0 = it has none
    seed: int = 0  # of the policy's own randomness
    allow_drop: bool = True  # let greedy policies refuse what no expert gains from

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, ("seed",), SEED)
        check_range(self, ("prefix_entries",), COUNT_OR_ZERO)

    def check_complete(self) -> None:
        """Check that a fleet and one policy are given."""
        if not self.fleet:
            remedy = "give --fleet=FLEET.csv, or the name of a shipped fleet"
            raise input_error("is missing", field="fleet", remedy=remedy)
        if (self.policy is None) == (self.checkpoint is None):
            fault = "is missing" if self.policy is None else "is given beside checkpoint"
            remedy = "give --policy=NAME, such as load_aware_greedy, or --checkpoint=DIR"
            raise input_error(fault, field="policy", remedy=remedy)


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """A live router: its policy, its upstreams, and what it takes from clients.

    Raises:
      InputError: naming the field at fault and what to give.
    """

    upstreams: str  # CSV: expert,url and optionally model,api_key_env,quality,output_tokens,length_log_std
    router: RouterConfig = option(RouterConfig, flat=True)
    exported: str | None = None  # a file of qos-jax export, in place of fleet and policy
    predictor: str | None = None  # predictor.npz of prepare_data: quality and length by text
    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0 opens the router to the network
    port: int = 8080  # 0 = any free one
    model: str = "auto"  # what clients call the routed model
    api_key_env: str | None = None  # environment variable with the key that clients must give; none = no key
    retries: int = 2  # times that a request is sent elsewhere, if a server fails before the first byte
    scrape_period_s: float = 1.0  # seconds between reads of each server's /metrics; inf = never
    health_period_s: float = 2.0  # seconds between health checks of a server that is up
    health_timeout_s: float = 2.0  # seconds until a check has failed
    max_backoff_s: float = 15.0  # longest pause between checks of a server that is down
    connect_timeout_s: float = 3.0  # seconds to connect to a server
    stall_timeout_s: float = 120.0  # seconds without a byte that end an answer which has begun
    body_timeout_s: float = 30.0  # seconds that a client may take to send a request
    max_body_bytes: int = 8_000_000  # longest body of a request
    max_header_bytes: int = 32_768  # longest header of a request
    max_connections: int = 4096  # clients connected at once
    stream_usage: bool = True  # ask servers for the token counts of streams, also where clients do not
    drain_timeout_s: float = 60.0  # seconds that requests in flight have to end after SIGTERM
    log_text: bool = False  # write prompts to prompts.jsonl; without it no text is kept
    check: bool = False  # check everything, compile the decision, and end without listening

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, ("retries",), COUNT_OR_ZERO)
        check_range(self, ("port",), Interval(0, 65535, whole=True))
        check_range(self, ("max_body_bytes", "max_header_bytes", "max_connections"), COUNT)
        waits = ("health_period_s", "health_timeout_s", "max_backoff_s", "connect_timeout_s")
        check_range(self, (*waits, "stall_timeout_s", "body_timeout_s"), POSITIVE)
        check_range(self, ("drain_timeout_s",), NON_NEGATIVE)
        if self.scrape_period_s != math.inf:
            check_range(self, ("scrape_period_s",), POSITIVE)
        if not self.model:
            raise input_error("is empty", field="model", remedy="give a name, such as auto")
        if self.exported is None:
            self.router.check_complete()
        elif self.router != RouterConfig():
            fault = "has its own fleet and policy"
            raise input_error(fault, field="exported", remedy="leave out the other flags of the router")

    def client_key(self) -> str | None:
        """Return the key that clients must give, or None.

        Raises:
          InputError: the variable is not set.
        """
        if self.api_key_env is None:
            return None
        if key := os.environ.get(self.api_key_env):
            return key
        fault, remedy = f"${self.api_key_env} is not set", f"run: export {self.api_key_env}=KEY"
        raise input_error(fault, field="api_key_env", remedy=remedy)
