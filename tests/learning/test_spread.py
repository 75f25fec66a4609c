"""Training on two devices does what training on one does, up to the order of sums."""

import os
import subprocess
import sys
from pathlib import Path


def test_two_devices_agree_with_one():
    ended = subprocess.run(
        [sys.executable, "-m", "tests.learning.two_devices"],
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        },
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "equal"
