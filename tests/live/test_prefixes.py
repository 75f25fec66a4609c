"""What prompts share with earlier ones, and a twin that follows the servers' caches by it."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from qos_jax.live.config import RouterConfig
from qos_jax.live.prefixes import KnownPrefixes
from qos_jax.live.prompts import Expectations, read_request
from qos_jax.live.router import plan_router
from qos_jax.live.twin import Newcomer, SharedPrefix, Twin

EXPECTED = Expectations(np.float32([0.5]), np.float32([30.0]))  # a token is four bytes, and four a message
SYSTEM, HELLO, ANSWER, MORE = ("s" * 400, "h" * 80, "a" * 120, "m" * 40)


def chat(*texts, roles=("system", "user", "assistant", "user"), **body):
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return read_request(json.dumps({"messages": messages, **body}).encode(), is_chat=True)


def test_a_turn_shares_what_was_said_before_and_a_new_conversation_the_system_prompt():
    known = KnownPrefixes(EXPECTED)
    first = known.of(chat(SYSTEM, HELLO))
    assert (first.system_tokens, first.tokens) == (104, 104)
    second = known.of(chat(SYSTEM, HELLO, ANSWER, MORE))
    assert (second.system_group, second.group) == (first.system_group, first.group)
    assert second.tokens == (400 + 80 + 120) // 4 + 3 * 4  # the answer as well
    again = known.of(chat(SYSTEM, HELLO, ANSWER, MORE))
    assert again.tokens == EXPECTED.prompt_tokens(chat(SYSTEM, HELLO, ANSWER, MORE))
    other = known.of(chat(SYSTEM, MORE))
    assert other.system_group == first.system_group
    assert other.group not in (first.group, first.system_group)
    assert other.tokens == 104
    for unlike in (chat("another", HELLO), chat(SYSTEM, HELLO, tools=[{"type": "function"}])):
        assert not {known.of(unlike).group, known.of(unlike).system_group} & {first.group, first.system_group}


def test_without_a_system_prompt_a_conversation_stands_alone():
    known = KnownPrefixes(EXPECTED)
    roles = ("user", "assistant", "user")
    assert known.of(chat(HELLO, roles=roles)) == SharedPrefix(-1, 0, 0, 0)
    assert known.of(chat(HELLO, ANSWER, MORE, roles=roles)) == SharedPrefix(-1, 0, 0, 58)


def test_plain_prompts_share_whole_pieces():
    known = KnownPrefixes(EXPECTED)
    for body, tokens in (({"prompt": "x" * 3000}, 576), ({"prompt": list(range(700))}, 640)):
        first = known.of(read_request(json.dumps(body).encode(), is_chat=False))
        cut = {"prompt": body["prompt"][:2500] if isinstance(body["prompt"], str) else [*range(650)]}
        shared = known.of(read_request(json.dumps(cut).encode(), is_chat=False))
        assert (shared.group, shared.tokens) == (first.group, tokens)


def test_the_longest_unused_is_forgotten_first():
    known = KnownPrefixes(EXPECTED, most=4)
    roles = ("user",)
    groups = [known.of(chat(text, roles=roles)).group for text in "abcdaefg"]
    assert groups[4] == groups[0]
    assert known.of(chat("a", roles=roles)).group == groups[0]
    assert known.of(chat("b", roles=roles)).group not in groups


@pytest.fixture(scope="module")
def following(fleet):
    """A compiled router that follows prefix caches."""
    config = RouterConfig(str(fleet), "prefix_load", latency_limit_s=1.0, prefix_entries=8)
    return plan_router(config).compiled()


def test_a_conversation_goes_back_to_the_server_that_holds_it(following):
    now = [0.0]
    twin = Twin(following.step, following.start, following.events, lambda: now[0])

    def send(group, tokens, prompt=96):
        now[0] += 1.0
        prefix = SharedPrefix(-1, 0, group, tokens)
        number, decision = twin.decide(Newcomer(prompt, np.float32([20, 20]), np.float32([0.5, 0.5]), prefix))
        return number, decision.expert

    first, at_first = send(0, 0)
    second, at_second = send(1, 0)  # while the first runs
    assert {at_first, at_second} == {0, 1}
    for number in (first, second):
        twin.ended(number, 20)
    now[0] += 60.0
    third, at_third = send(1, 116, 130)
    twin.ended(third, 20)
    fourth, at_fourth = send(0, 116, 130)
    twin.ended(fourth, 20)
    assert (at_third, at_fourth) == (at_second, at_first)
    now[0] += 60.0
    twin.up[at_second] = False
    assert send(2, 0)[1] == at_first
    twin.up[at_second] = True
    now[0] += 600.0
    # What it held is lost with it, so both are alike to that conversation again, and the first is taken.
    assert send(1, 150, 160)[1] == 0


def test_chats_through_the_proxy_go_back_to_their_server(following, fleet, tmp_path):
    pytest.importorskip("aiohttp", reason="needs the extra: pip install 'qos_jax[serve]'")
    from tests.live.running import opener

    def said(*texts):
        return [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant", "user"), texts, strict=False)
        ]

    async def test():
        async with opener(following, fleet, tmp_path)() as here:

            async def expert_of(*texts):
                status, answer, _ = await here.ask(messages=said(*texts), max_tokens=40)
                assert status == 200
                return answer.headers["x-qos-expert"]

            began = await asyncio.gather(*(expert_of(name * 300) for name in "ab"))
            assert len(set(began)) == 2
            went_on = [await expert_of(name * 300, ANSWER, MORE) for name in "ba"]
            assert went_on == began[::-1]

    asyncio.run(asyncio.wait_for(test(), 60))
