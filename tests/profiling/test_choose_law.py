"""A table of decode times is chosen and found where a server has one, and not where it has none."""

import csv
import dataclasses

import numpy as np
import pytest

from qos_jax.profiling import RequestLog, SearchConfig, ServerLimits, fit_requests, read_request_log
from qos_jax.profiling.choose_law import choose_law, identified_table, most_decoding
from qos_jax.profiling.price_law import AFFINE, COEFFICIENTS, PriceLaw
from qos_jax.profiling.profile_files import append_expert, fleet_of_one, knot_lists
from qos_jax.profiling.replay import replay_requests
from qos_jax.workload import fleet_path, read_fleet
from tests.profiling.logs import LIMITS, TRUE, requests

TABLE = PriceLaw((1, 2, 4, 8))
# No affine law with a base >= 0 rises so: 1, 3, 8 and 9 ms for one, two, four and eight requests.
VALUE = np.array([2e-3, 2e-4, 5e-8, 1e-3, 2e-3, 5e-3, 1e-3, 2e-6, 3e-6, 4e-6, 3e-6])
EIGHT = ServerLimits("chunked_prefill", max_running=8, max_batched_tokens=2048, kv_capacity_tokens=8192)


@pytest.fixture(scope="module")
def log():
    """Requests that such a server answers, its times with 2% of noise."""
    rng = np.random.default_rng(0)
    count = 120
    blank = RequestLog(
        arrival_s=np.cumsum(rng.exponential(0.15, count)) - 0.01,
        prompt_tokens=rng.integers(16, 400, count),
        output_tokens=rng.integers(8, 90, count),
        start_s=None,
        first_token_s=None,
        last_token_s=None,
        file="mine.csv",
    )
    replay = replay_requests(blank, EIGHT, VALUE, law=TABLE)
    noise = np.exp(0.02 * rng.normal(size=(2, count)))
    first_s = blank.arrival_s + replay.ttft_s * noise[0]
    last_s = first_s + (replay.latency_s - replay.ttft_s) * noise[1]
    return dataclasses.replace(blank, start_s=blank.arrival_s, first_token_s=first_s, last_token_s=last_s)


def test_a_server_with_a_table_is_given_one_which_predicts_it(log):
    law, errors = choose_law([log], EIGHT)
    assert law == TABLE
    assert errors["table"] < 0.5 * errors["affine"]
    found = fit_requests([log], EIGHT, {}, SearchConfig(starts=4, recoveries=0), law=law)
    exact = np.array([[batch, batch * 200, 0, 0] for batch in (1, 2, 3, 4, 6, 8)]).T
    np.testing.assert_allclose(law.rows(*exact) @ found.fit.value, law.rows(*exact) @ VALUE, rtol=0.06)


def test_an_affine_server_keeps_its_six_coefficients():
    law, errors = choose_law([requests(count=60)], LIMITS)
    assert law is AFFINE
    assert errors["affine"] < 1e-4


def test_a_table_has_no_batch_that_the_log_never_ran(log):
    alone = dataclasses.replace(log, arrival_s=10.0 * np.arange(120.0))
    shift_s = alone.arrival_s - log.arrival_s
    alone = dataclasses.replace(
        alone, first_token_s=log.first_token_s + shift_s, last_token_s=log.last_token_s + shift_s
    )
    assert most_decoding(log) >= 8  # times with noise may overlap by one more than the server ran
    assert most_decoding(alone) == 1
    assert identified_table([log], EIGHT, [np.ones(120, bool)]) == TABLE
    assert identified_table([alone], EIGHT, [np.ones(120, bool)]) is AFFINE


def test_a_table_on_the_affine_law_prices_every_iteration_alike():
    works = np.array(
        [[3, 900, 0, 0], [8, 2000, 0, 0], [16, 4000, 0, 0], [5, 700, 120, 14400], [0, 0, 9, 81]]
    ).T
    same = TABLE.from_affine(TRUE)
    np.testing.assert_allclose(TABLE.rows(*works) @ same, AFFINE.rows(*works) @ TRUE, rtol=1e-12)
    assert AFFINE.knots(TRUE) == ()
    assert AFFINE.affine(TRUE) == dict(zip(COEFFICIENTS, TRUE, strict=True))


def test_a_fleet_without_columns_for_it_gets_them(tmp_path):
    path = tmp_path / "fleet.csv"
    path.write_bytes(fleet_path("paper3").read_bytes())
    before = read_fleet(path)
    row = {"max_running": 8, "max_waiting": 9, "max_batched_tokens": 2048, "kv_capacity_tokens": 8192}
    row |= TABLE.affine(VALUE) | {"network_rtt_s": 0.0, "busy_power_w": 0.0, "idle_power_w": 0.0}
    row |= knot_lists(TABLE.knots(VALUE))
    append_expert(path, "mine", row, ["measured"])
    after = read_fleet(path)
    assert after.names == (*before.names, "mine")
    ours = fleet_of_one("mine", row).profile.decode_knots
    for there, here in zip(after.profile.decode_knots, ours, strict=True):
        for name, values in vars(here).items():
            assert getattr(there, name)[-1] == values[0]
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    kept = [line for line in fleet_path("paper3").read_text().splitlines() if line.startswith("#")]
    assert comments == [*kept, "# measured"]
    with open(path) as stream:
        assert len({len(cells) for cells in csv.reader(x for x in stream if not x.startswith("#"))}) == 1


@pytest.mark.parametrize(
    ("fitted", "predicted", "limits", "within"),
    [
        (["np8_rate6"], "np8_rate2", (8, 8192), 0.15),
        (["np4_rate5_a", "np4_rate5_b"], "np4_rate2_a", (4, 4096), 0.06),
    ],
)
def test_a_real_server_is_predicted_at_another_load(shared, fitted, predicted, limits, within):
    """Means and medians of TTFT, TPOT and latency; affine decoding is 25 to 38% off here."""
    logs = [read_request_log(shared / f"data/llamacpp_cpu/m28_{name}.csv") for name in (*fitted, predicted)]
    limits = ServerLimits("chunked_prefill", limits[0], 2048, limits[1])
    law, _ = choose_law(logs[:-1], limits)
    found = fit_requests(logs[:-1], limits, {}, SearchConfig(starts=4, recoveries=0), law=law)
    other = logs[-1]
    replay = replay_requests(other, limits, found.fit.value, law=law)
    gaps = other.output_tokens - 1
    for ours, theirs in (
        (replay.ttft_s, other.ttft_s),
        ((replay.latency_s - replay.ttft_s) / gaps, (other.latency_s - other.ttft_s) / gaps),
        (replay.latency_s, other.latency_s),
    ):
        for statistic in (np.mean, np.median):
            assert statistic(ours) == pytest.approx(statistic(theirs), rel=within)
