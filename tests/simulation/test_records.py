"""Records: shapes, the rule of QoS, and the CSV file as the project promises it."""

import csv
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qos_jax.routing.fleet_state import Outcome
from qos_jax.simulation.ledger import Ledger
from qos_jax.simulation.records import COMPLETED, FAILED, RequestRecords, traced_records, write_records_csv
from qos_jax.workload import RequestTable

GOLDEN = """\
request_id,arrival_s,expert,status,prompt_tokens,output_tokens,ttft_s,latency_s,preemptions,latency_per_token_s,quality,qos
0,0.0,"a, fast",completed,100,10,0.125,0.5,0,0.05,0.5,0.5
1,0.5,b,completed,200,5,0.25,1,2,0.2,1,0
2,1.0,b,rejected,300,7,,,0,,,0
3,1.25,,dropped,400,,,,0,,,0
4,2.0,"a, fast",completed,500,25,0.5,2,1,0.08,0.25,0.25
5,3.0,b,completed,600,1,0.75,1,0,1,1,0
"""


def _part(records: RequestRecords, part: slice) -> RequestRecords:
    return RequestRecords(
        **{name: values[part] for name, values in vars(records).items() if values is not None}
    )


def test_csv_is_as_promised(records, limit_s, tmp_path):
    path = tmp_path / "run" / "records.csv"
    assert write_records_csv(path, records, ["a, fast", "b"], limit_s) == 6
    assert path.read_text() == GOLDEN


def test_chunks_give_the_same_file(records, limit_s, tmp_path):
    path = tmp_path / "records.csv"
    chunks = (_part(records, slice(start, start + 4)) for start in (0, 4))
    assert write_records_csv(path, chunks, ["a, fast", "b"], limit_s) == 6
    assert path.read_text() == GOLDEN


def test_nothing_is_left_of_a_file_that_fails(records, limit_s, tmp_path):
    def chunks():
        yield records
        raise RuntimeError("simulation failed")

    with pytest.raises(RuntimeError, match="simulation failed"):
        write_records_csv(tmp_path / "records.csv", chunks(), ["a", "b"], limit_s)
    assert list(tmp_path.iterdir()) == []


def test_csv_keeps_late_arrivals_and_its_own_arithmetic(tmp_path):
    rng = np.random.default_rng(0)
    n = 100_000
    run = RequestRecords(
        status=np.zeros(n),
        expert=np.zeros(n),
        arrival_s=np.sort(rng.random(n)) * 604_800,
        prompt_tokens=np.ones(n),
        output_tokens=rng.integers(1, 500, n),
        ttft_s=rng.random(n),
        latency_s=rng.random(n) * 20,
        preemptions=np.zeros(n),
        quality=rng.random(n),
    )
    start = time.perf_counter()
    write_records_csv(tmp_path / "records.csv", run, ["a"], 0.05)
    assert time.perf_counter() - start < 10  # about 0.6 s alone
    with open(tmp_path / "records.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["arrival_s"]) for row in rows] == run.arrival_s.tolist()
    for row in rows[::97]:
        within = float(row["latency_per_token_s"]) <= 0.05
        assert float(row["qos"]) == (float(row["quality"]) if within else 0)


def test_qos_is_quality_within_the_limit(records, limit_s):
    np.testing.assert_allclose(records.qos(limit_s), [0.5, 0, 0, 0, 0.25, 0])
    np.testing.assert_array_equal(records.within_limit(0.05), [True, False, False, False, False, False])


def test_at_picks_one_run(records):
    fields = {name: values for name, values in vars(records).items() if values is not None}
    both = RequestRecords(**{name: np.stack([values, values[::-1]])[None] for name, values in fields.items()})
    np.testing.assert_array_equal(both.at(0, 1).prompt_tokens, records.prompt_tokens[::-1])
    with pytest.raises(ValueError, match="leading axes"):
        records.at(0)


def test_an_outcome_without_a_latency_failed_at_its_last_expert(tmp_path):
    """Request 1 went to expert 0, was routed again, and failed at expert 1, by ledger and program."""
    ids = np.array([0, 1, -1], np.int32)
    outcome = Outcome(
        request_id=ids,
        expert=np.array([0, 1, 0], np.int32),
        ttft_s=np.array([0.5, -1.0, 0.0], np.float32),
        latency_s=np.array([1.0, -1.0, 0.0], np.float32),
        preemptions=np.array([0, 2, 0], np.int32),
    )
    early, late = (jax.tree.map(lambda leaf, at=at: leaf[at], outcome) for at in (slice(1), slice(1, 3)))
    table = RequestTable(
        prompt_tokens=np.array([7, 8], np.int32),
        quality=np.array([[0.5, 0.25], [0.75, 1.0]], np.float32),
        output_tokens=np.array([[10, 20], [30, 40]], np.int32),
        predicted_quality=np.zeros((2, 2), np.float32),
        predicted_output_tokens=np.ones((2, 2), np.float32),
    )
    routed, accepted = np.zeros((1, 2), np.int32), np.full((1, 2), COMPLETED, np.int32)
    arrival_s = np.array([[0.0, 0.75]])
    ledger = Ledger(1, 2, 2)
    ledger.enter_decisions(routed, accepted, slice(0, 1), slice(0, 2))
    ledger.enter_outcomes(jax.tree.map(lambda leaf: leaf[None], outcome), slice(0, 1))
    kept = ledger.records(arrival_s, jax.tree.map(lambda leaf: leaf[None], table)).at(0)
    assert ledger.totals(arrival_s).makespan_s == [1.0]
    traced, unaccounted = traced_records(
        jax.tree.map(jnp.asarray, table), *jax.tree.map(jnp.asarray, (routed[0], accepted[0], early, late))
    )
    assert unaccounted == 0
    for got in (kept, traced):
        np.testing.assert_array_equal(got.status, [COMPLETED, FAILED])
        np.testing.assert_array_equal(got.expert, [0, 1])
        np.testing.assert_array_equal(got.output_tokens, [10, 40])
        np.testing.assert_array_equal(got.quality, np.float32([0.5, 1.0]))
        np.testing.assert_array_equal(got.ttft_s, np.float32([0.5, np.nan]))
        np.testing.assert_array_equal(got.latency_s, np.float32([1.0, np.nan]))
        np.testing.assert_array_equal(got.preemptions, [0, 2])
    write_records_csv(tmp_path / "records.csv", kept, ["a", "b"], 0.1)
    assert (tmp_path / "records.csv").read_text().splitlines()[2] == "1,0.75,b,failed,8,40,,,2,,,0"


def test_differing_shapes_are_refused(records):
    with pytest.raises(ValueError, match="common shape"):
        dataclasses.replace(records, quality=records.quality[:-1])


def test_a_csv_holds_one_run(records, tmp_path):
    fields = {name: values[None] for name, values in vars(records).items() if values is not None}
    with pytest.raises(ValueError, match="one run"):
        write_records_csv(tmp_path / "records.csv", RequestRecords(**fields), ["a", "b"], 0.1)
