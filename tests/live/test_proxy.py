"""What clients get through the proxy: bytes of servers, refusals, retries; every request accounted for."""

from __future__ import annotations

import asyncio
import csv
import json
import time

import pytest

pytest.importorskip("aiohttp", reason="needs the extra: pip install 'qos_jax[serve]'")
pytest.importorskip("uvicorn", reason="needs the extra: pip install 'qos_jax[serve]'")

from qos_jax.errors import InputError
from qos_jax.live.request_log import PROMPTS, RequestLog
from qos_jax.predictors import fit_predictor
from qos_jax.predictors.predictor_file import save_predictor
from qos_jax.profiling.request_log import read_request_log
from tests.live.conftest import EXPERTS
from tests.live.running import until
from tests.predictors.conftest import config_of
from tests.predictors.texts import EXPERTS as NAMES
from tests.predictors.texts import make_texts


def run(test):
    asyncio.run(asyncio.wait_for(test, 60))


def test_answers_pass_byte_for_byte_and_the_log_is_one_that_calibrate_reads(live):
    async def test():
        async with live() as here:
            for options in ({"stream": True}, {"stream": False}, {"stream_options": {"include_usage": True}}):
                status, answer, body = await here.ask(max_tokens=7, **options)
                expert = answer.headers["x-qos-expert"]
                upstream = here.servers[EXPERTS.index(expert)]
                assert status == 200
                direct = await here.ask(upstream.url, max_tokens=7, **{**options, "model": expert})
                assert body == direct[2]
                assert answer.content_type == direct[1].content_type
            # The usage of a stream is asked for, and hidden from those who did not.
            sent = [one for fake in here.servers for one in fake.bodies if "stream_options" in one]
            assert len(sent) == 3
            counts = await here.counts()
            assert counts["arrived_total"] == counts["completed_total"] == 3
        logs = [read_request_log(path) for path in here.proxy.log.paths if path.read_text().count("true")]
        assert (
            sum(log.num_requests for log in logs) == 2
        )  # of the one that was not streamed no token was seen
        assert {n for log in logs for n in log.output_tokens.tolist()} == {7}
        assert {n for log in logs for n in log.prompt_tokens.tolist()} == {3}
        assert not (here.folder / PROMPTS).exists()

    run(test())


def test_cached_tokens_are_logged_and_counted_where_servers_report_them(live):
    async def test():
        async with live() as here:
            here.servers[0].cached_tokens = here.servers[1].cached_tokens = 2
            for stream in (True, False):
                await here.ask(stream=stream)
            async with here.client.get(f"{here.url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            counted = {"prompt": 0.0, "cached": 0.0}
            for name in counted:
                of = [line.split()[-1] for line in lines if line.startswith(f"qos_{name}_tokens_total")]
                counted[name] = sum(map(float, of))
            assert counted == {"prompt": 6.0, "cached": 4.0}
            paths, folder = here.proxy.log.paths, here.folder
        rows = [row for path in paths for row in csv.DictReader(path.read_text().splitlines())]
        assert [row["cached_tokens"] for row in rows] == ["2", "2"]
        paths[0].write_text("arrival_s,status\n")
        with pytest.raises(InputError, match=r"row 1: has other columns .* --overwrite"):
            RequestLog(folder, EXPERTS, log_text=False, renew=False)

    run(test())


def test_a_server_that_is_healthy_and_fails_every_request_is_not_asked_each_time(live):
    async def test():
        async with live() as here:
            bad, good = here.servers
            bad.status = 503  # its /health says 200
            for _ in range(40):
                status, answer, _ = await here.ask()
                assert (status, answer.headers["x-qos-expert"]) == (200, "bee")
            assert 1 <= len(bad.bodies) < 12
            assert here.proxy.twin.up.all()
            bad.status = 200
            await until(lambda: not here.proxy.servers[0].is_shunned)
            while (await here.ask())[1].headers["x-qos-expert"] != "ant":
                pass
            # Where no other is left, one that failed just now is asked all the same.
            good.status = bad.status = 503
            for _ in range(2):
                assert (await here.ask())[0] == 502
            good.status = bad.status = 200
            assert (await here.ask())[0] == 200

    run(test())


def test_no_text_is_kept_unless_asked(live):
    async def test():
        async with live(log_text=True) as here:
            await here.ask(messages=[{"role": "user", "content": "a secret"}])
        files = {path.name: path.read_text() for path in here.folder.iterdir()}
        assert [name for name, text in files.items() if "secret" in text] == [PROMPTS]

    run(test())


def test_a_server_that_fails_before_the_first_byte_is_replaced_and_one_that_fails_later_is_reported(live):
    async def test():
        async with live() as here:
            bad, good = here.servers
            for fault in ({"break_after": 0}, {"status": 503}, {"status": 429}):
                vars(bad).update(fault)
                tries = len(bad.bodies)
                while len(bad.bodies) == tries:  # the policy may have begun with the other
                    status, answer, _ = await here.ask()
                    assert (status, answer.headers["x-qos-expert"]) == (200, "bee")
                vars(bad).update(break_after=None, status=200)
            good.break_after = bad.break_after = 3
            status, _, body = await here.ask()
            events = [json.loads(line[6:]) for line in body.split(b"\n\n") if line]
            assert status == 200
            assert [one["choices"][0]["delta"]["content"] for one in events[:-1]] == ["w1 ", "w2 ", "w3 "]
            assert events[-1]["error"]["code"] == "server_failed"
            counts = await here.counts()
            assert counts["failed_total"] == 1

    run(test())


def test_a_connection_that_the_server_closed_meanwhile_is_no_failure(live):
    async def test():
        async with live(retries=0) as here:
            for fake in here.servers:
                fake.closes_silently = True
            for _ in range(6):
                assert (await here.ask())[0] == 200
            assert any(fake.dropped for fake in here.servers)
            assert here.proxy.twin.up.all()

    run(test())


def test_a_full_line_is_refused_with_a_time_to_come_again(live):
    async def test():
        async with live() as here:
            for fake in here.servers:
                fake.scale = 1.0
            asked = [asyncio.create_task(here.ask(max_tokens=30)) for _ in range(30)]
            await until(lambda: any(map(_done, asked)))
            status, answer, body = next(task.result() for task in asked if task.done())
            assert (status, json.loads(body)["error"]["code"]) == (429, "full")
            assert int(answer.headers["retry-after"]) >= 1
            for fake in here.servers:
                fake.scale = 0.0
            statuses = [status for status, *_ in await asyncio.gather(*asked)]
            # Eight wait at each; how many run by then depends on the clock.
            assert 16 <= statuses.count(200) <= 24
            assert set(statuses) == {200, 429}

    run(test())


def test_a_client_that_leaves_ends_its_request_at_the_server(live):
    async def test():
        async with live() as here:
            for fake in here.servers:
                fake.scale = 0.5
            for wait in ("answer", "tokens"):
                task = asyncio.create_task(here.ask(max_tokens=500))
                await until(lambda: any(server.attempts for server in here.proxy.servers))
                if wait == "tokens":
                    await until(lambda: any(a.has_begun for s in here.proxy.servers for a in s.attempts))
                before = sum(fake.cancelled for fake in here.servers)
                task.cancel()
                await until(lambda before=before: sum(fake.cancelled for fake in here.servers) > before)
            await until(lambda: not any(server.attempts for server in here.proxy.servers))
            counts = await here.counts()
            assert counts["failed_total"] == 2
            assert counts["in_flight"] == 0

    run(test())


def test_servers_that_die_and_come_back_lose_no_request(live):
    async def test():
        async with live(health_period_s=0.05, max_backoff_s=0.1) as here:
            for fake in here.servers:
                fake.scale = 0.1

            async def client(number):
                await asyncio.sleep(0.01 * number)
                return await here.ask(max_tokens=10)

            asked = [asyncio.create_task(client(number)) for number in range(60)]
            for number in range(4):
                await asyncio.sleep(0.1)
                fake = here.servers[number % 2]
                await fake.kill()
                await until(
                    lambda number=number: not here.proxy.twin.up[number % 2] or all(map(_done, asked))
                )
                await fake.start()
            answers = await asyncio.gather(*asked)
            for status, _, body in answers:
                if status == 200 and b'"error"' not in body:
                    assert body.endswith(b"data: [DONE]\n\n")
                    assert body.count(b'"content"') == 10
                else:
                    last = body if status != 200 else body.split(b"\n\n")[-2].removeprefix(b"data: ")
                    assert json.loads(last)["error"]["message"]
            counts = await here.counts()
            ends = ("completed_total", "refused_total", "failed_total")
            assert counts["arrived_total"] == 60 == sum(counts.get(name, 0.0) for name in ends)
            await until(here.proxy.twin.up.all)

    run(test())


def test_a_router_that_was_late_itself_and_servers_too_busy_for_checks_are_no_failures(live):
    async def test():
        limits = {"connect_timeout_s": 0.2, "health_timeout_s": 0.2, "health_period_s": 0.01}
        async with live(retries=0, **limits) as here:
            asked = [asyncio.create_task(here.ask()) for _ in range(4)]
            for _ in range(12):
                time.sleep(0.25)  # the loop stands still
                await asyncio.sleep(0)
            assert [status for status, *_ in await asyncio.gather(*asked)] == [200] * 4
            assert here.proxy.twin.up.all()
            for fake in here.servers:
                fake.scale, fake.health_s = 0.5, 60.0
            before = [(fake.checked, len(fake.bodies)) for fake in here.servers]
            answer = await here.ask(max_tokens=200)
            assert (answer[0], answer[2].count(b'"content"')) == (200, 200)
            (busy,) = (n for n, fake in enumerate(here.servers) if len(fake.bodies) > before[n][1])
            assert here.servers[busy].checked > before[busy][0] + 2  # more than take one down that is silent
            assert here.proxy.twin.up[busy]

    run(test())


def test_a_predictor_reads_the_text_of_each_request(live, tmp_path):
    texts = make_texts(200)
    prompts = [texts.prompts[list(texts.hard).index(is_hard)] for is_hard in (True, False, True)]
    predictor = fit_predictor(
        config_of("neighbours"), texts.prompts, texts.quality, texts.output_tokens, NAMES
    )
    save_predictor(tmp_path / "predictor.npz", predictor)

    async def test():
        async with live(predictor=str(tmp_path / "predictor.npz")) as here:
            seen, decide = [], here.proxy.twin.decide
            here.proxy.twin.decide = lambda newcomer, *more: seen.append(newcomer) or decide(newcomer, *more)
            for text, limit in zip(prompts, (9999, 9999, 20), strict=True):
                message = {"role": "user", "content": text}
                status, *_ = await here.ask(messages=[message], max_completion_tokens=limit)
                assert status == 200
            hard, easy, cut = seen
            assert (hard.predicted_output_tokens > 2 * easy.predicted_output_tokens).all()
            assert (hard.predicted_quality < easy.predicted_quality).all()
            assert cut.predicted_output_tokens.tolist() == [20.0, 20.0]

    run(test())


def _done(task):
    return task.done()


def test_with_no_server_up_clients_are_told_when_to_come_again(live):
    async def test():
        async with live(health_period_s=0.05) as here:
            assert (await here.ask())[0] == 200
            for fake in here.servers:
                await fake.kill()
            await until(lambda: not here.proxy.twin.up.any())
            status, answer, _ = await here.ask()
            assert (status, answer.headers["retry-after"]) == (503, "1")
            async with here.client.get(f"{here.url}/health") as health:
                assert health.status == 503

    run(test())
