"""What a plan makes of a configuration, and which combinations are refused."""

import dataclasses

import pytest

from qos_jax.errors import InputError
from qos_jax.learning import plan
from qos_jax.learning.train_config import TrainConfig


@pytest.mark.parametrize(
    ("worse", "paid"),
    [
        ({}, True),
        ({"length_noise_log": (0.0, 0.5)}, True),  # lengths are simulated, true whatever was predicted
        ({"quality_noise": (0.0, 0.3)}, False),
        ({"quality_bias": (-0.1, 0.0)}, False),
    ],
)
def test_where_scenarios_add_error_to_qualities_the_true_ones_are_paid(monkeypatch, worse, paid):
    pays = {}
    for name in ("search", "ppo"):

        def keep(env, draw, network, config, name=name):
            pays[name] = config.predicted_quality

        monkeypatch.setattr(plan, f"make_{name}", keep)
    default = TrainConfig()
    distil = dataclasses.replace(default.distil, updates=0)
    plan.load_plan(
        dataclasses.replace(default, distil=distil, scenario=dataclasses.replace(default.scenario, **worse))
    )
    assert pays == {"search": paid, "ppo": paid}


def test_distil_needs_calibration_where_qualities_err():
    default = TrainConfig()
    uncalibrated = dataclasses.replace(default.network, calibrate_quality=False)
    noisy = dataclasses.replace(default.scenario, quality_noise=(0.0, 0.3))
    dataclasses.replace(default, scenario=noisy)
    dataclasses.replace(default, network=uncalibrated)
    with pytest.raises(InputError, match=r"field 'network\.calibrate_quality'.*distil\.updates"):
        dataclasses.replace(default, scenario=noisy, network=uncalibrated)
