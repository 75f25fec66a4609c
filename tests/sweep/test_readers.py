"""Which policies read a swept number of the net gain: one that none of those named reads is refused."""

import pytest

from qos_jax.errors import InputError
from qos_jax.sweep.plan import SweepConfig, load_sweep


@pytest.mark.parametrize("axis", ["congestion_price=0.1,0.3", "price_by_pace=0,1", "margin=0.2,0.4"])
def test_the_price_without_profiles_is_swept_of_measured_greedy_alone(axis):
    load_sweep(SweepConfig(sweep=(axis,), policies=("measured_greedy",)))


@pytest.mark.parametrize("axis", ["penalty_weight=1,2", "quality_slope=0.5,1", "price_by_prefill=0,1"])
def test_what_measured_greedy_does_not_read_is_refused(axis):
    with pytest.raises(InputError, match="add projected_greedy to --policies"):
        load_sweep(SweepConfig(sweep=(axis,), policies=("measured_greedy",)))


def test_training_runs_are_not_taken_together():
    """A sweep would show them as routers of their own."""
    with pytest.raises(InputError, match="names 'ours' twice, and sweeps do not take training runs together"):
        load_sweep(SweepConfig(checkpoint=("ours=runs/a", "ours=runs/b")))
