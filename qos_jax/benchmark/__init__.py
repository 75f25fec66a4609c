"""Measuring speed: simulator, routers, networks, decisions, training; on work that is checked to be equal."""

from qos_jax.benchmark.benchmark import BenchmarkConfig, BenchmarkPlan, execute_benchmark, load_benchmark
from qos_jax.benchmark.machine import copy_bandwidth_bytes_per_s, machine, peak_memory_bytes
from qos_jax.benchmark.report import render_speed, render_speeds
from qos_jax.benchmark.row import WHAT, Speed

__all__ = [
    "load_benchmark",
    "execute_benchmark",
    "BenchmarkConfig",
    "BenchmarkPlan",
    "Speed",
    "WHAT",
    "render_speeds",
    "render_speed",
    "machine",
    "peak_memory_bytes",
    "copy_bandwidth_bytes_per_s",
]
