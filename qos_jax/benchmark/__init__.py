"""Measuring speed: simulator, routers, networks, decisions, training; on work that is checked to be equal."""

from qos_jax.benchmark.benchmark import BenchmarkConfig, BenchmarkPlan, execute_benchmark, load_benchmark
from qos_jax.benchmark.machine import copy_bandwidth_bytes_per_s, machine, peak_memory_bytes
from qos_jax.benchmark.report import render_speed, render_speeds
from qos_jax.benchmark.row import WHAT, Speed

__all__ = [
    "WHAT",
    "BenchmarkConfig",
    "BenchmarkPlan",
    "Speed",
    "copy_bandwidth_bytes_per_s",
    "execute_benchmark",
    "load_benchmark",
    "machine",
    "peak_memory_bytes",
    "render_speed",
    "render_speeds",
]
