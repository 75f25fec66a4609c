"""Drive the router by a benchmark tool that people use, and fit the tool's export, outside CI.

``python -m tests.live.clients --environment=ENV``, a virtual environment with aiperf 0.13. Its export has the
client's times, the router's own log the router's: the fit to the first predicts the second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.live.load import fake, router, totals

# A tokenizer of the client's own, a token a byte, so that nothing is loaded from a hub.
_TOKENIZER = """
import json, sys
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
made = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
made.save(sys.argv[1] + "/tokenizer.json")
config = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
Path(sys.argv[1], "tokenizer_config.json").write_text(config)
"""


def aiperf(environment: Path, folder: Path, url: str, options: argparse.Namespace) -> Path:
    """Ask for streamed chats at Poisson arrivals; return the export of every request."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    subprocess.run([environment / "bin" / "python", "-c", _TOKENIZER, tokenizer], check=True)
    command = [environment / "bin" / "aiperf", "profile", "--model", "auto", "--url", url, "--streaming"]
    command += ["--endpoint-type", "chat", "--tokenizer", tokenizer, "--ui", "none", "--no-gpu-telemetry"]
    command += ["--request-rate", str(options.rate), "--request-count", str(options.requests)]
    command += ["--isl", "400", "--isl-stddev", "200", "--osl", "30", "--osl-stddev", "15"]
    command += ["--use-server-token-count", "--random-seed", "0", "--artifact-dir", folder / "aiperf"]
    subprocess.run(command, check=True, timeout=options.timeout_s)
    return folder / "aiperf" / "profile_export.jsonl"


def main() -> None:
    """Run the tool against the router, check the router's counts, and fit the export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, required=True, help="a virtual environment with aiperf")
    parser.add_argument("--rate", type=float, default=4.0, help="requests / s")
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument(
        "--scale", type=float, default=10.0, help="times as slow as the fake server's figures"
    )
    parser.add_argument("--timeout_s", type=float, default=600.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with fake(options.scale) as (_, port), router(folder, [int(port)]) as (_, url):
            export = aiperf(options.environment, folder, url, options)
            counts = totals(url)
        print(f"router counts: {counts}", flush=True)
        records = [json.loads(line) for line in export.open(encoding="utf-8")]
        failed = sum(bool(record.get("error")) for record in records)
        print(f"export: {len(records)} requests, {failed} failed", flush=True)
        flags = ["--expert=server", "--max_running=64", "--kv_capacity_tokens=400000", "--noplots"]
        flags += ["--max_batched_tokens=4096", f"--requests={export}", f"--out={folder / 'fit'}"]
        flags += [f"--predict={folder / 'run' / 'requests_server0.csv'}"]
        done = subprocess.run([sys.executable, "-m", "launch.calibrate", *flags], check=False)
        sys.exit(done.returncode or counts["arrived_total"] != counts["completed_total"])


if __name__ == "__main__":
    main()
