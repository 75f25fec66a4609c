import pytest

from qos_jax.policies import policy, types
from qos_jax.policies.encoders import NetworkConfig
from qos_jax.policies.learned import learned_policy
from qos_jax.serving import ServingConfig


@pytest.mark.parametrize(
    ("experts", "running", "waiting", "in_turn"), [(6, 16, 16, True), (16, 64, 64, True), (24, 48, 48, False)]
)
def test_runs_take_turns_on_fleets_of_few_slots(monkeypatch, experts, running, waiting, in_turn):
    config = ServingConfig(experts, running, waiting)
    assert not policy("load_aware_greedy").takes_turns(config)
    monkeypatch.setattr(types, "small_loops_joined", lambda: True)
    assert policy("load_aware_greedy").takes_turns(config) == in_turn
    assert not learned_policy("learned", NetworkConfig(), None).takes_turns(config)
