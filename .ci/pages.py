"""Run what the pages show: every command and every Python example, two pages at a time.

The commands of data/results/ and of the README's section "Results" name the sizes that were measured; they
run at the sizes of SMALLER. Files that a user downloads are replaced by a trace of three minutes, and each
page has a folder of its own for runs/. Programs are those that the tests run, ready soonest; training that is
judged at a preset's sizes has the optimised ones, since there simulating takes longer than compiling.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.xla_flags import quick_to_compile  # noqa: E402

FOLDERS = ("launch", "qos_jax", "data", "findings")
PAGES = sorted([ROOT / "README.md", *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
DOWNLOADED = re.compile(r"AzureLLMInferenceTrace_\w+\.csv")

_NETWORK = "network.han.hidden=8 network.han.heads=2 network.hidden=8 max_steps=16"
_EVALUATION = "evaluation.every=2 evaluation.seeds=2 evaluation.num_requests=32 evaluation.loads=0.75"
_SEARCH = "search.updates=2 search.candidates=2 search.num_envs=4 search.steps=8"
_SAC = (
    "sac.total_updates=2 sac.num_envs=4 sac.steps_per_update=32 sac.gradient_steps=1 sac.warmup_decisions=32"
)
_PPO = "ppo.total_updates=2 ppo.num_envs=4 ppo.rollout_steps=8 ppo.minibatches=2"
_TRAIN = f"{_NETWORK} {_EVALUATION}"
SMALLER = {
    "evaluate": "seeds=2 num_requests=32",
    "sweep": "seeds=2 num_requests=32",
    "ablate": "variants=full runs=1 cases.seeds=2 cases.num_requests=32 cases.loads=0.75 "
    + " ".join(f"train.{flag}" for flag in f"{_TRAIN} {_SEARCH} {_PPO}".split()),
    "benchmark": "environments=1,4 num_requests=32 repeats=1 reference_runs=1 graphs=4 calls=10 "
    "train_environments=4",
    "prepare_data": "folds=2 predictor.hash_bits=8 predictor.components=8 predictor.hidden=8 "
    "predictor.members=1 predictor.max_epochs=2",
}


def blocks(text: str, language: str) -> str:
    """Return the fenced blocks of a text in a language, one after the other."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


def commands(page: Path) -> list[tuple[list[str], bool]]:
    """Return the launchers' commands of a page as [launcher, flag, ...], and whether to make each smaller."""
    found = []
    for section in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        measured = page.parent.name == "results" or section.startswith("Results\n")
        for line in blocks(section, "bash").replace("\\\n", " ").splitlines():
            if line.startswith("python -m launch."):
                found.append((shlex.split(line)[2:], measured))
    return found


def run(page: Path, trace: Path, runs: Path, environment: dict[str, str]) -> list[str]:
    """Run all that a page shows, one after the other, run folders in ``runs``; return what failed."""
    failed = []
    todo: list[tuple[str, list[str]]] = []
    for (module, *flags), is_measured in commands(page):
        name = module.removeprefix("launch.")
        flags = [DOWNLOADED.sub(str(trace), flag).replace("runs/", f"{runs}/") for flag in flags]
        if is_measured:
            small = SMALLER.get(name, "")
            if any(flag.startswith("--views=") for flag in flags):
                small += " views=twin"  # each view is a program of its own
            if name == "train":
                trains = {
                    "--preset=paper6": _SAC,
                    "--preset=predictions": f"{_PPO} {_SEARCH}",
                    "--agent=ppo": _PPO,
                }
                small = f"{_TRAIN} {next((trains[flag] for flag in flags if flag in trains), _SEARCH)}"
            flags += [f"--{flag}" for flag in small.split()]
        todo.append((f"{name} {' '.join(flags)}", ["-m", module, *flags, *_replacing(name)]))
    if python := blocks(page.read_text(encoding="utf-8"), "python"):
        todo.append(("the Python examples", ["-c", python]))
    for what, arguments in todo:
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ if _is_long(arguments) else environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        taken = time.monotonic() - start
        print(f"{page.relative_to(ROOT)}: {what}: {done.returncode} in {taken:.0f} s", flush=True)
        if done.returncode:
            failed.append(f"{page.relative_to(ROOT)}: {what}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return failed


def _is_long(arguments: list[str]) -> bool:
    return "launch.train" in arguments and not any("evaluation.num_requests" in flag for flag in arguments)


def _replacing(name: str) -> list[str]:
    return [] if name in ("fit_tables", "export") else ["--overwrite"]


def main() -> None:
    """Run all pages and exit with 1 if anything failed."""
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    with tempfile.TemporaryDirectory() as folder, pool:
        trace = Path(folder, "trace.csv")
        rows = (f"{second},{second % 50 + 10},{second % 30 + 5}" for second in range(180))
        trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
        environment = os.environ | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", quick_to_compile())}
        todo = [
            pool.submit(run, page, trace, Path(folder, page.parent.name, page.stem), environment)
            for page in PAGES
        ]
        failed = [fault for page in todo for fault in page.result()]
    print("\n".join(failed), file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
