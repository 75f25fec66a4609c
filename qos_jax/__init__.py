"""QoS-aware routing of requests among LLM servers at the network edge, in JAX."""

__all__ = ["__version__"]

__version__ = "0.1.0"
