"""Report progress of a long job: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

Advance = Callable[[int], None]  # takes how many more units are done


@contextlib.contextmanager
def progress(
    total: int,
    unit: str = "requests",
    *,
    description: str = "",
    stream: TextIO | None = None,
    interval_s: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Report progress, rate and time left while the body runs; the body calls ``advance(count)``.

    On a terminal this is a tqdm bar. Elsewhere a line like
    ``12,000/100,000 requests 3,400/s ETA 26 s`` is written at most every ``interval_s`` (when the body
    advances), and one at the end of a body that did not raise.

    Args:
      total: units of work in all.
      unit: what is counted, in the plural.
      description: put in front of every line.
      stream: where to write; standard error by default.
      interval_s: least seconds between two lines.
      clock: seconds from an arbitrary start.

    Yields:
      ``advance(count)``, to call after ``count`` more units are done.
    """
    out = sys.stderr if stream is None else stream
    if out.isatty():
        label = description or None
        with tqdm(total=total, unit=f" {unit}", desc=label, file=out, dynamic_ncols=True) as bar:

            def advance_bar(count: int) -> None:
                bar.update(count)

            yield advance_bar
        return

    lead = f"{description}: " if description else ""
    start = last = clock()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = clock()
        if now - last >= interval_s and done < total:
            last = now
            rate = done / max(now - start, 1e-9)
            eta = f"{(total - done) / rate:,.0f} s" if rate > 0 else "unknown"
            print(f"{lead}{done:,}/{total:,} {unit} {rate:,.0f}/s ETA {eta}", file=out, flush=True)

    yield advance
    taken_s = clock() - start
    rate_text = f" {done / taken_s:,.0f}/s" if taken_s > 0 else ""
    print(f"{lead}{done:,}/{total:,} {unit}{rate_text} in {taken_s:,.1f} s", file=out, flush=True)
