import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax import kernels
from qos_jax.kernels import jit_lanes, join_small_loops, small_loops_joined, vmap_in_turn

# Simulates with lanes in turn and together, and prints whether XLA made one kernel of all the former do.
_SIMULATE = """
import dataclasses, importlib, json
import numpy as np
from qos_jax.kernels import join_small_loops, small_loops_joined
join_small_loops()
from qos_jax.benchmark.work import draw_work
from qos_jax.policies import policy
simulate = importlib.import_module("qos_jax.simulation.simulate")
assert small_loops_joined()
work = draw_work(2, 4, 16, "prefill_first", 0)
runs, given, run_chunk = work.runs.take(slice(0, 2)), [], simulate._run_chunk
simulate._run_chunk = lambda *arguments: (given.append(arguments), run_chunk(*arguments))[1]
router = policy("projected_greedy")
routed = [simulate.simulate(work.serving, each, runs, workers=1).records
          for each in (router, dataclasses.replace(router, is_small=False))]
text = run_chunk.lower(*given[0]).compile().as_text()
entry = text[text.index("ENTRY") :]
print(json.dumps({
    "in_turn": [arguments[0] for arguments in given],
    "equal": all(np.array_equal(left, right, equal_nan=True) for left, right in (
        (getattr(routed[0], name), getattr(routed[1], name)) for name in ("status", "expert", "latency_s"))),
    "kernels": entry.count('xla_cpu_small_call="true"'),
    "loops": entry.count(" while("),
}))
"""


@pytest.fixture
def flags(monkeypatch):
    def set_to(value):
        monkeypatch.setenv("XLA_FLAGS", value)

    return set_to


_BOUND = "xla_cpu_small_while_loop_byte_threshold="
_JOIN = f"--xla_backend_extra_options={_BOUND}{kernels.SMALL_LOOP_BYTES}"
_NO_JOINING = "--xla_disable_hlo_passes=small-while-loop-hoisting"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", _JOIN),
        ("--xla_backend_optimization_level=0", f"--xla_backend_optimization_level=0 {_JOIN}"),
        (
            "--xla_backend_extra_options=o=8 --xla_dump_to=here",
            f"--xla_backend_extra_options=o=8,{_BOUND}{kernels.SMALL_LOOP_BYTES} --xla_dump_to=here",
        ),
    ],
)
def test_small_loops_are_joined_beside_whatever_else_is_set(flags, given, expected):
    flags(given)
    join_small_loops()
    assert os.environ["XLA_FLAGS"] == expected
    assert small_loops_joined()


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (f"--xla_backend_extra_options={_BOUND}1024", False),
        (f"--xla_backend_extra_options={_BOUND}400000,some_option=4000000", False),
        (f"--xla_backend_extra_options={_BOUND}40000000", True),
        (_NO_JOINING, False),
        (f"{_JOIN} {_NO_JOINING}", False),
    ],
)
def test_what_the_user_decided_about_it_stands(flags, given, joined):
    flags(given)
    join_small_loops()
    assert os.environ["XLA_FLAGS"] == given
    assert small_loops_joined() == joined


def test_joined_twice_is_joined_once(flags):
    flags("")
    join_small_loops()
    once = os.environ["XLA_FLAGS"]
    join_small_loops()
    assert os.environ["XLA_FLAGS"] == once


def test_lanes_in_turn_are_the_lanes_of_vmap():
    def one(scale, pair, key):
        return {"sum": pair["a"] @ pair["a"] * scale, "drawn": jax.random.uniform(key) + pair["b"]}

    arrays = jnp.float32(2.0), {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.float32(1.0)}
    keys = jax.random.split(jax.random.key(0), 2)
    axes = (None, {"a": 0, "b": None}, 0)
    expected = jax.vmap(one, axes)(*arrays, keys)
    for got in (
        vmap_in_turn(one, axes)(*arrays, keys),
        jit_lanes(lambda name, *given: one(*given)[name], 1, axes)(True, "sum", *arrays, keys),
    ):
        got = {"sum": got} if not isinstance(got, dict) else got
        for name, values in got.items():
            np.testing.assert_array_equal(values, expected[name])


def test_a_simulation_in_turn_is_one_kernel_and_the_same():
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    ran = subprocess.run([sys.executable, "-c", _SIMULATE], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"in_turn": [True, False], "equal": True, "kernels": 1, "loops": 0}
