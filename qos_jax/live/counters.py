"""What the router counts of itself, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qos_jax.live.sse import Usage

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_DECISION_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)


class Counters:
    """The router's metrics; requests arrived = completed + refused + failed + in flight, at any time."""

    def __init__(self) -> None:
        """Start at zero, in a registry of its own."""
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"qos_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"qos_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"qos_{name}", text, labels, buckets=buckets, registry=self.registry)

        self.arrived = counter("requests_arrived", "Requests for an answer")
        self.completed = counter("requests_completed", "Answered in full", "expert")
        self.refused = counter("requests_refused", "Refused before any server's answer", "reason")
        self.failed = counter("requests_failed", "Not answered in full", "reason")
        self.in_flight = gauge("requests_in_flight", "Arrived and not ended")
        self.sent = gauge("expert_requests_in_flight", "Sent to a server and not ended", "expert")
        self.retried = counter("retries", "Sent to another server", "expert")
        self.within_limits = counter("requests_within_limits", "Completed within every limit", "expert")
        self.output_tokens = counter("output_tokens", "Generated, by the server's count", "expert")
        self.prompt_tokens = counter("prompt_tokens", "Of prompts whose cached tokens are reported", "expert")
        self.cached_tokens = counter("cached_tokens", "Of these, found in a prefix cache", "expert")
        self.up = gauge("expert_up", "1 = not known to be down", "expert")
        self.pace = gauge("expert_pace", "Estimated pace: 1 = as calibrated, more is slower", "expert")
        self.ttft_s = histogram("ttft_seconds", "Sent to first token", _SECONDS, "expert")
        self.latency_s = histogram("latency_seconds", "Arrival to last byte", _SECONDS, "expert")
        self.decision_s = histogram("decision_seconds", "One decision", _DECISION_SECONDS)

    def note_tokens(self, expert: str, usage: Usage | None, output_tokens: int) -> None:
        """Count the tokens of an answer, and those of its prompt where the server says how many it had."""
        self.output_tokens.labels(expert).inc(output_tokens)
        if usage is not None and usage.cached_tokens is not None:
            self.prompt_tokens.labels(expert).inc(usage.prompt_tokens)
            self.cached_tokens.labels(expert).inc(usage.cached_tokens)

    def text(self) -> bytes:
        """Return all of them in the Prometheus text format."""
        return generate_latest(self.registry)
