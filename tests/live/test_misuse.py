"""Clients that misbehave get a clear status, and nothing of it reaches a server."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("aiohttp", reason="needs the extra: pip install 'qos_jax[serve]'")
pytest.importorskip("uvicorn", reason="needs the extra: pip install 'qos_jax[serve]'")

from tests.live.test_proxy import run


async def raw(url: str, data: bytes) -> bytes:
    """Send bytes, and return all that comes until the connection is closed."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


def test_misuse_is_refused_before_any_server_is_asked(live, monkeypatch):
    monkeypatch.setenv("QOS_TEST_KEY", "sesame")

    async def test():
        limits = {"max_body_bytes": 2000, "max_header_bytes": 1000, "body_timeout_s": 0.2}
        async with live(api_key_env="QOS_TEST_KEY", **limits) as here:
            post = f"{here.url}/v1/chat/completions"
            for key in (None, "Bearer sesam", "sesame", "Bearer "):
                async with here.client.post(post, headers={"Authorization": key} if key else {}) as answer:
                    assert answer.status == 401
            headers = {"Authorization": "Bearer sesame"}
            for path in ("/v1/models", "/metrics"):
                async with here.client.get(here.url + path) as answer:
                    assert answer.status == 401
                async with here.client.get(here.url + path, headers=headers) as answer:
                    assert answer.status == 200
            bodies = {
                b"{": (400, "invalid_request"),
                b"[]": (400, "invalid_request"),
                b'{"messages": []}': (400, "invalid_request"),
                b'{"messages": ["x"]}': (400, "invalid_request"),
                b'{"model": "gpt", "messages": [{"content": "x"}]}': (404, "model_not_found"),
                json.dumps({"messages": [{"content": "x" * 3000}]}).encode(): (413, "too_large"),
            }
            for body, (status, code) in bodies.items():
                async with here.client.post(post, headers=headers, data=body) as answer:
                    assert (answer.status, (await answer.json())["error"]["code"]) == (status, code), body
            async with here.client.post(post, headers=headers, data=_chunks()) as answer:
                assert answer.status == 413
            async with here.client.get(post) as answer:
                assert answer.status == 405
            async with here.client.get(f"{here.url}/nothing") as answer:
                assert answer.status == 404
            long_prompt = {"messages": [{"content": "x " * 900}], "max_tokens": 3}
            status, _, _ = await _post(here, post, headers, long_prompt)
            assert status == 200  # within 4,000 tokens
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            assert b" 431 " in await raw(here.url, head + b"x: " + b"y" * 2000)
            key = b"authorization: Bearer sesame\r\n"
            assert b" 408 " in await raw(here.url, head + key + b"content-length: 9\r\n\r\n{")
            assert await raw(here.url, head) == b""  # a header that never ends
            assert await raw(here.url, b"") == b""
        assert sum(len(fake.bodies) for fake in here.servers) == 1

    run(test())


async def _chunks():
    for _ in range(30):
        yield b"x" * 100


async def _post(here, url, headers, body):
    async with here.client.post(url, headers=headers, json=body) as answer:
        return answer.status, answer, await answer.read()


def test_a_prompt_that_no_server_holds_is_a_bad_request(live):
    async def test():
        async with live() as here:
            status, _, body = await here.ask(messages=[{"role": "user", "content": "word " * 9000}])
            assert (status, json.loads(body)["error"]["code"]) == (400, "too_long")

    run(test())


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_both_endpoints_answer(live, endpoint):
    async def test():
        async with live() as here:
            body = {"prompt": "a b", "messages": [{"content": [{"type": "text", "text": "a b"}]}]}
            async with here.client.post(
                f"{here.url}/v1/{endpoint}", json={**body, "max_tokens": 2}
            ) as answer:
                assert answer.status == 200
                assert (await answer.json())["usage"]["completion_tokens"] == 2

    run(test())
