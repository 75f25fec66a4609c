#!/usr/bin/env bash
# gymnax 1.0.1 in a fresh environment: can it be imported?
#
# A good guess: what `pip install gymnax` installs is enough for `import gymnax`.
# Instead: the import ends in ModuleNotFoundError for `six`, which gymnax does not declare. Its MNIST bandit,
# imported whether it is used or not, takes urlretrieve from six.moves. Six used to arrive by way of matplotlib
# and python-dateutil; python-dateutil 4.0.0 no longer needs it. Name six beside gymnax in your requirements.
# Source: gymnax/utils/load_mnist.py; the metadata of both packages.
#
# Seen:
#   gymnax 1.0.1, matplotlib 3.11.2, python-dateutil 4.0.0
#   gymnax declares six: []
#   python-dateutil declares six: []
#   import gymnax: ModuleNotFoundError: No module named 'six'
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 gymnax==1.0.1 python-dateutil==4.0.0
observe <<'PROGRAM'
import importlib.metadata

from finding import error_of, shown, versions

versions("gymnax", "matplotlib", "python-dateutil")
for package in ("gymnax", "python-dateutil"):
    needs = [need for need in importlib.metadata.requires(package) or [] if "six" in need]
    shown(f"{package} declares six", needs, not needs)
error = error_of(lambda: __import__("gymnax"))
shown("import gymnax", error, error == "ModuleNotFoundError: No module named 'six'")
PROGRAM
