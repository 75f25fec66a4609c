#!/usr/bin/env bash
# rliable 1.2.0 in a fresh environment: can it be imported?
#
# A good guess: what `pip install rliable` installs works together.
# Instead: `from rliable import library` ends in TypeError. rliable asks for arch below 8, whose last release, 7.2.0,
# decorates a method with a private function of pandas by two names; pandas 3.1 wants a class of warnings before
# them. arch asks for any pandas from 1.4 on, so pip installs the latest. Only metrics, which needs no arch, can be
# imported. Pin pandas below 3 beside rliable.
# Source: arch/univariate/base.py (deprecate_kwarg); pandas/util/_decorators.py; the metadata of both packages.
#
# Seen:
#   rliable 1.2.0, arch 7.2.0, pandas 3.1.1
#   rliable needs: ['arch<8.0,>=5.3.1']
#   from rliable import metrics: None
#   from rliable import library: TypeError: deprecate_kwarg() missing 1 required positional argument: 'new_arg_name'
#   the same with pandas 2.3.3: None
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install rliable==1.2.0 arch==7.2.0 pandas==3.1.1
observe <<'PROGRAM'
import importlib
import importlib.metadata

from finding import error_of, shown, versions

versions("rliable", "arch", "pandas")
needs = [need for need in importlib.metadata.requires("rliable") or [] if "arch" in need]
shown("rliable needs", needs, needs == ["arch<8.0,>=5.3.1"])
error = error_of(lambda: importlib.import_module("rliable.metrics"))
shown("from rliable import metrics", error, error is None)
error = error_of(lambda: importlib.import_module("rliable.library"))
shown("from rliable import library", error, (error or "").startswith("TypeError: deprecate_kwarg() missing 1"))
PROGRAM
"$PYTHON" -m pip install --quiet --no-compile pandas==2.3.3 2>"$FOLDER/pip.log" || { cat "$FOLDER/pip.log" >&2; exit 2; }
observe <<'PROGRAM'
import importlib

from finding import error_of, shown

error = error_of(lambda: importlib.import_module("rliable.library"))
shown("the same with pandas 2.3.3", error, error is None)
PROGRAM
