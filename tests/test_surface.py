"""What ``import qos_jax`` gives: lazily, all of it there, and an environment that steps at once."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qos_jax
from qos_jax.errors import InputError


def test_importing_it_imports_nothing_of_what_it_gives():
    loaded = "[name for name in sys.modules if name.split('.')[0] in ('jax', 'flax', 'qos_jax')]"
    code = f"import sys, qos_jax; print(*{loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["qos_jax"]


def test_all_its_names_are_there():
    for name in qos_jax.__all__:
        assert getattr(qos_jax, name) is not None
    assert sorted(dir(qos_jax)) == sorted(qos_jax.__all__)
    assert len(set(qos_jax.__all__)) == len(qos_jax.__all__) == 20
    with pytest.raises(AttributeError, match="no attribute 'maker'"):
        _ = qos_jax.maker


def test_a_made_environment_steps_at_once_and_at_the_load_asked_for():
    env, params = qos_jax.make("paper3", load=0.5, max_steps=7, reward="potential", num_requests=64)
    assert params.max_steps_in_episode == env.config.max_steps == 7
    assert env.config.reward == "potential"
    _, twice = qos_jax.make("paper3", load=1.0, num_requests=64)
    np.testing.assert_allclose(twice.process.rate_per_s, 2.0 * params.process.rate_per_s, rtol=1e-6)
    _, given = qos_jax.make("paper3", arrival_rate=3.0, latency_limit_s=0.5, num_requests=64)
    assert (float(given.process.rate_per_s), float(given.latency_limit_s)) == (3.0, 0.5)
    state, seen = jax.eval_shape(env.reset, jax.random.key(0), params)
    assert seen.predicted_quality.shape == (3,)
    assert env.action_space(params).n == 4  # one more to drop
    _, result = jax.eval_shape(env.step, jax.random.key(0), state, jnp.int32(0), params)
    assert result.reward.shape == ()
    assert qos_jax.registered_fleets()[0]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"fleet": "edge7"}, "no fleet 'edge7' is shipped .did you mean"),
        ({"load": 0.5, "arrival_rate": 3.0}, "field 'load': contradicts arrival_rate"),
        ({"load": 0.0}, "field 'load': 0.0 is out of range; give a finite number above 0"),
        ({"max_steps": 0}, "field 'max_steps': 0 is out of range"),
        ({"reward": "qso"}, "'qso' is unknown .did you mean 'qos'"),
        ({"scheduler": "fifo"}, "field 'scheduler'"),
        ({"latency_limit_s": -1.0}, "field 'latency_limit_s'"),
    ],
)
def test_bad_settings_of_an_environment_are_refused(options, fault):
    with pytest.raises(InputError, match=fault):
        qos_jax.make(**{"fleet": "paper3", "num_requests": 4, **options})


def test_routers_are_compared_in_one_call():
    comparison = qos_jax.evaluate(
        fleet="paper3",
        policies=("round_robin", "best_quality"),
        baseline="round_robin",
        workloads=("poisson",),
        loads=(0.5,),
        seeds=2,
        num_requests=16,
    )
    assert {row.policy for row in comparison.rows} >= {"round_robin", "best_quality"}
    with pytest.raises(InputError, match=r"'polices' is unknown .did you mean 'policies'"):
        qos_jax.evaluate(polices=("random",))
