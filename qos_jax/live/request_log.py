"""Write what became of each request, a file per expert, in the layout that calibrate reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import IO, Any

from qos_jax.errors import input_error

COLUMNS = (
    "arrival_s",  # when it was sent to the server, in seconds since 1970, as the other stamps
    "first_token_s",
    "last_token_s",
    "prompt_tokens",
    "output_tokens",
    "success",
    "error",
    "ended",
    "request_id",
    "status",
    "cached_tokens",  # of the prompt, where the server reports them
)
PROMPTS = "prompts.jsonl"


class RequestLog:
    """The open logs of a run."""

    def __init__(self, folder: Path, experts: tuple[str, ...], *, log_text: bool, renew: bool) -> None:
        """Open a log per expert; those of an earlier run are continued, or begun anew."""
        self._files: list[IO[str]] = []
        self._writers = []
        self.paths = tuple(folder / f"requests_{file_name(expert)}.csv" for expert in experts)
        mode = "w" if renew else "a"
        for path in self.paths:
            is_new = renew or not path.exists() or path.stat().st_size == 0
            if not is_new:
                _check_continues(path)
            stream = open(path, mode, encoding="utf-8", newline="")  # noqa: SIM115 closed by close()
            self._files.append(stream)
            self._writers.append(csv.writer(stream, lineterminator="\n"))
            if is_new:
                self._writers[-1].writerow(COLUMNS)
        self._prompts = open(folder / PROMPTS, mode, encoding="utf-8") if log_text else None  # noqa: SIM115

    def write(
        self,
        expert: int,
        *,
        sent_s: float,
        first_s: float | None,
        last_s: float,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int | None,
        error: str,
        ended: str,
        request_id: str,
        status: int,
    ) -> None:
        """Append a request that was sent to a server.

        Args:
          expert: its index.
          sent_s: seconds since 1970.
          first_s: when its first token came; None = that was not seen.
          last_s: when its last token came, or when it failed.
          prompt_tokens: as the server counts, or else estimated.
          output_tokens: likewise.
          cached_tokens: of the prompt, found in a prefix cache; None = not reported.
          error: why its times are not those of a whole answer; "" if they are.
          ended: completed, or what ended it.
          request_id: of the client's request, the same in every log where it was tried.
          status: of HTTP, 0 if there was none.
        """
        first = "" if first_s is None else f"{first_s:.6f}"
        row = (f"{sent_s:.6f}", first, f"{last_s:.6f}", prompt_tokens, output_tokens)
        said = ("false" if error else "true", error, ended, request_id, status)
        self._writers[expert].writerow((*row, *said, "" if cached_tokens is None else cached_tokens))

    def write_text(self, request_id: str, expert: str, body: dict[str, Any]) -> None:
        """Append the text of a request, where that was asked for."""
        if self._prompts is not None:
            record = {"request_id": request_id, "expert": expert, "body": body}
            self._prompts.write(json.dumps(record, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        for stream in (*self._files, *([self._prompts] if self._prompts else [])):
            stream.flush()

    def close(self) -> None:
        """Close the logs."""
        self.flush()
        for stream in (*self._files, *([self._prompts] if self._prompts else [])):
            stream.close()


def _check_continues(path: Path) -> None:
    with open(path, encoding="utf-8", newline="") as stream:
        if tuple(next(csv.reader(stream), ())) != COLUMNS:
            fault, remedy = "has other columns than this version writes", "give another --out, or --overwrite"
            raise input_error(fault, file=path, row=1, remedy=remedy)


def file_name(expert: str) -> str:
    """Return the name of an expert as part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-._#" else "_" for letter in expert)
