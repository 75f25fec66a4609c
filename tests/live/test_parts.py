"""The parts of the live router: events read at any split, published loads, upstreams, exports, the twin."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qos_jax.errors import InputError
from qos_jax.live import program
from qos_jax.live.config import RouterConfig, ServeConfig
from qos_jax.live.exported import load_exported
from qos_jax.live.prompts import ClientRequest, Expectations, read_request
from qos_jax.live.published import Published, read_published
from qos_jax.live.router import plan_router
from qos_jax.live.sse import EventStream, Usage
from qos_jax.live.twin import Newcomer, Twin
from qos_jax.live.upstreams import read_upstreams

ONE, TWO = (
    b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % text for text in (rb"a \"usage\": {", b"b")
)
COUNTS = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'
ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_events_pass_whole_and_unchanged_wherever_they_are_split(line_end):
    whole = b"".join((ROLE, ONE, TWO, COUNTS, DONE)).replace(b"\n", line_end)
    hidden = whole.replace(COUNTS.replace(b"\n", line_end), b"")
    for at in range(len(whole)):
        for hide, expected in ((True, hidden), (False, whole)):
            events = EventStream(hide_usage=hide)
            assert events.feed(whole[:at]) + events.feed(whole[at:]) + events.end() == expected
            assert (events.deltas, events.usage, events.is_done) == (2, Usage(5, 2), True)


def test_a_stream_that_ends_early_is_not_done():
    events = EventStream(hide_usage=True)
    assert events.feed(ONE + TWO[:9]) == ONE
    assert events.end() == TWO[:9]
    assert not events.is_done


def test_published_loads_of_vllm_and_llama_cpp():
    vllm = "# HELP x\n" + "".join(
        f'vllm:{name}{{engine="{engine}",model_name="a b {{c}}"}} {value}\n'
        for engine in (0, 1)
        for name, value in (("num_requests_running", 3.0), ("num_requests_waiting", 1.0))
    )
    vllm += 'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:kv_cache_usage_perc{engine="1"} 0.75\n'
    assert read_published(vllm) == Published(6, 2, 0.5, None)
    assert Published(6, 2, 0.5, None).kv_in_use(1000) == 500
    llama = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 4 1700000000\n"
    assert read_published(llama) == Published(2, 4, None, None)
    assert Published(2, 4, None, None).kv_in_use(1000) == -1
    for text in ("", "vllm:num_requests_waiting 3", "vllm:num_requests_running NaN", "<html>"):
        assert read_published(text) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("expert,url\nant,http://a:1\n", "no row for the expert 'bee'"),
        ("expert,url\nant,http://a:1\nbee,http://b:1\nant,http://c:1\n", "row 4, field 'expert'.*twice"),
        ("expert,url\nant,http://a:1\nbea,http://b:1\n", "row 3.*did you mean 'bee'"),
        ("expert,url\nant,a:1\nbee,http://b:1\n", "row 2, field 'url'.*http://HOST:PORT"),
        ("expert,url\nant,http://u:p@a:1\nbee,http://b:1\n", "row 2, field 'url'"),
        (
            "expert,url,quality\nant,http://a:1,1.5\nbee,http://b:1,1\n",
            "row 2, field 'quality'.*out of range",
        ),
        (
            "expert,url,api_key_env\nant,http://a:1,QOS_NO_SUCH\nbee,http://b:1,\n",
            "row 2.*QOS_NO_SUCH is not set",
        ),
    ],
)
def test_faults_of_an_upstreams_file_name_row_field_and_remedy(tmp_path, text, fault):
    path = tmp_path / "upstreams.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=fault):
        read_upstreams(path, ("ant", "bee"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"router": RouterConfig()}, "field 'fleet'"),
        ({"router": RouterConfig("edge6")}, "field 'policy'"),
        ({"router": RouterConfig("edge6", "random", "runs/x")}, "beside checkpoint"),
        ({"router": RouterConfig("edge6", "random"), "exported": "x"}, "field 'exported'"),
        ({"router": RouterConfig("edge6", "random"), "port": 70000}, "field 'port'"),
    ],
)
def test_faults_of_the_configuration(change, fault):
    with pytest.raises(InputError, match=fault):
        ServeConfig("upstreams.csv", **change)


def test_a_router_that_measures_cannot_serve(fleet):
    with pytest.raises(InputError, match="which the twin does not hold"):
        plan_router(RouterConfig(str(fleet), "measured_greedy", latency_limit_s=1.0))


def test_an_oracle_cannot_serve(fleet):
    with pytest.raises(InputError, match="sees true lengths"):
        plan_router(RouterConfig(str(fleet), "clairvoyant_greedy", latency_limit_s=1.0))


def test_prompt_tokens_are_learned_from_what_servers_count():
    expected = Expectations(np.float32([0.5]), np.float32([30.0]))
    request = read_request(json.dumps({"prompt": "x" * 400, "max_tokens": 20}).encode(), is_chat=False)
    assert isinstance(request, ClientRequest)
    first = expected.newcomer(request)
    assert (first.prompt_tokens, first.predicted_output_tokens.tolist()) == (100, [20.0])
    for _ in range(300):
        expected.learn(request, 200)
    assert abs(expected.prompt_tokens(request) - 200) <= 2
    tokens = read_request(b'{"prompt": [1, 2, 3]}', is_chat=False)
    assert expected.prompt_tokens(tokens) == 3


def play(router, answer_s: float = 0.3, begins: bool = True) -> tuple[list[int | None], Twin]:
    """Route forty requests at a steady rate on a clock of its own; answers of 20 tokens."""
    now = [0.0]
    twin = Twin(router.step, router.start, router.events, lambda: now[0])
    chosen, ends = [], []
    for number in range(40):
        now[0] += 0.2
        while ends and ends[0][0] <= now[0]:
            _, request_id = ends.pop(0)
            twin.ended(request_id, 20)
        if number == 20:
            twin.scraped(1, 4, 7, -1)
        request_id, decision = twin.decide(Newcomer(50, np.float32([20, 20]), np.float32([0.5, 0.5])))
        chosen.append(decision.expert)
        if decision.expert is not None:
            if begins:
                twin.began(request_id)
            ends.append((now[0] + answer_s, request_id))
    return chosen, twin


def test_an_exported_router_decides_as_the_live_one_bit_for_bit(planned, router, tmp_path):
    planned.export(tmp_path / "router.npz")
    loaded = load_exported(tmp_path / "router.npz")
    assert (loaded.name, loaded.experts, loaded.limits) == (router.name, router.experts, router.limits)
    (ours, one), (theirs, other) = play(router), play(loaded)
    assert ours == theirs
    for mine, its in zip(one._state, other._state, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(its))
    arrays = dict(np.load(tmp_path / "router.npz"))
    header = json.loads(str(arrays["header"]))
    for damage, fault in (
        ({"header": np.array(json.dumps(header | {"version": 99}))}, "version 99"),
        ({"program": arrays["program"][:100]}, "is damaged"),
        ({"header": np.array("{}")}, "is no exported router"),
    ):
        np.savez(tmp_path / "damaged.npz", **(arrays | damage))
        with pytest.raises(InputError, match=fault):
            load_exported(tmp_path / "damaged.npz")


def test_a_twin_on_few_slots_is_the_one_on_all_slots_bit_for_bit(fleet, router, monkeypatch):
    monkeypatch.setattr(program, "_NARROW", 4)  # of 12
    narrow = plan_router(RouterConfig(str(fleet), "shortest_queue", latency_limit_s=1.0)).compiled()
    for answer_s in (0.3, 3.0):  # up to 1 at a server, and 8
        (ours, one), (theirs, other) = play(narrow, answer_s), play(router, answer_s)
        assert ours == theirs
        for mine, its in zip(one._state, other._state, strict=True):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(its))


def test_the_twin_shares_the_load_fills_up_and_avoids_what_is_down_or_published_as_full(router):
    chosen, twin = play(router)
    assert set(chosen[:18]) == {0, 1}
    assert chosen[21] == 0  # the other was just said to run 4 and to have 7 waiting
    busy, _ = play(router, answer_s=9.0, begins=False)
    assert None in busy
    twin.up[0] = False
    request = Newcomer(50, np.float32([20, 20]), np.float32([0.5, 0.5]))
    assert twin.decide(request)[1].expert == 1
    assert twin.decide(request, avoided=[1])[1].expert is None
    assert twin.decide(Newcomer(9999, request.predicted_output_tokens, request.predicted_quality))[
        1
    ].reason == ("too_long")


def test_a_server_that_is_slower_than_its_profile_is_noticed(router):
    _, twin = play(router)
    _, slow = play(router, answer_s=1.0)
    assert slow.pace.max() > 1.5 * twin.pace.max()
