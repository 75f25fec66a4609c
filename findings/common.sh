# Sourced by each finding: a temporary folder that is removed at the end, and a fresh environment in it.
#
#   install PACKAGE==VERSION...   make the environment and install into it
#   observe < PROGRAM             run a Python program there; it imports `shown` to state what must hold
#
# Everything runs on CPU, so that a finding does not depend on the machine's accelerator.

export JAX_PLATFORMS=cpu PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV XLA_FLAGS JAX_ENABLE_X64 JAX_DEFAULT_PRNG_IMPL

FOLDER="$(mktemp -d)"
trap 'rm -rf "$FOLDER"' EXIT
PYTHON="$FOLDER/venv/bin/python"

install() {
  python3 -m venv "$FOLDER/venv"
  "$PYTHON" -m pip install --quiet --no-compile "$@" 2>"$FOLDER/pip.log" || { cat "$FOLDER/pip.log" >&2; exit 2; }
  cat >"$FOLDER/finding.py" <<'PYTHON_END'
"""What the programs of the findings share."""
import importlib.metadata
import json
import sys
from http.server import BaseHTTPRequestHandler


def versions(*names):
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))


def shown(what, seen, holds):
    """Print what was seen; end the run with 1 unless it is what the finding states."""
    print(f"{what}: {seen}", flush=True)
    if not holds:
        print(f"DIFFERS from the finding: {what}", flush=True)
        sys.exit(1)


def error_of(call):
    """Return the class and first line of the exception that a call raises, or None."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None


class Answers(BaseHTTPRequestHandler):
    """The handler of a server that answers with JSON and logs nothing; clients may go away."""

    protocol_version = "HTTP/1.1"

    def handle(self):
        try:
            super().handle()
        except OSError:
            pass

    def log_message(self, *_):
        pass

    def answer(self, body, status=200):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
PYTHON_END
}

observe() {
  cat >"$FOLDER/program.py"
  (cd "$FOLDER" && "$PYTHON" -W ignore program.py "$@")
}
