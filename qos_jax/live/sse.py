"""Look into the server-sent events of a streamed answer: first token, token counts, end."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

# A delta with text. A quote within text is escaped, so what is between these quotes begins a field.
_CONTENT = re.compile(rb'"(?:content|text|reasoning_content|reasoning|arguments|refusal)"\s*:\s*"[^"]')
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_END = re.compile(rb"\n\n|\r\n\r\n")  # of an event
_DONE = re.compile(rb"^data:\s*\[DONE\]", re.MULTILINE)
_ERROR = re.compile(rb'^data:\s*\{\s*"error"\s*:|^error:', re.MULTILINE)
_MAX_EVENT_BYTES = 4_000_000  # a longer event passes unread


@dataclasses.dataclass(frozen=True)
class Usage:
    """Token counts as the server reports them."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None  # of the prompt, found in a prefix cache; None = not reported


class EventStream:
    """The events of one answer, fed piece by piece as they arrive."""

    def __init__(self, hide_usage: bool) -> None:
        """Start a stream; ``hide_usage`` leaves out the event that has token counts alone."""
        self._hide_usage = hide_usage
        self._rest = b""  # of an event that is not whole yet
        self.deltas = 0  # pieces of text so far
        self.usage: Usage | None = None
        self.is_done = False  # the last event came
        self.has_error = False  # the server reported one

    def feed(self, data: bytes) -> bytes:
        """Return what is to be passed on now: whole events."""
        data = self._rest + data
        cut = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4 if b"\r" in data else 0)
        if cut < 4:
            cut = len(data) if len(data) > _MAX_EVENT_BYTES else 0
        whole, self._rest = data[:cut], data[cut:]
        if not whole:
            return b""
        self.deltas += len(_CONTENT.findall(whole))
        # Most events have none of these words, and a word is sought in a tenth of the time of a pattern.
        if b'"usage"' in whole and _USAGE.search(whole):
            whole = self._read_usage(whole)
        self.is_done = self.is_done or (b"[DONE]" in whole and _DONE.search(whole) is not None)
        self.has_error = self.has_error or (b"error" in whole and _ERROR.search(whole) is not None)
        return whole

    def end(self) -> bytes:
        """Return what is left of a stream that ended."""
        rest, self._rest = self._rest, b""
        self.is_done = self.is_done or _DONE.search(rest) is not None
        return rest

    def _read_usage(self, whole: bytes) -> bytes:
        kept, at, match = [], 0, _USAGE.search(whole)
        while match:
            begin = max((end.end() for end in _END.finditer(whole, at, match.start())), default=at)
            end = _END.search(whole, match.end())
            after = end.end() if end else len(whole)
            content = _json_of(whole[begin:after])
            found = usage_of(content)
            self.usage = found or self.usage
            alone = found is not None and isinstance(content, dict) and not content.get("choices")
            kept.append(whole[at : begin if self._hide_usage and alone else after])
            at, match = after, _USAGE.search(whole, after)
        return b"".join((*kept, whole[at:]))


def usage_of(content: Any) -> Usage | None:
    """Return the token counts of an answer or of an event, if it has any."""
    usage = content.get("usage") if isinstance(content, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not isinstance(prompt, int) or not isinstance(output, int):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt, output, cached if isinstance(cached, int) else None)


def parsed(body: bytes) -> Any:
    """Return the JSON of a body, None if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def error_event(message: str, code: str) -> bytes:
    """Return the event that tells a client why its stream ends early."""
    return b"data: " + json.dumps(error_body(message, "upstream_error", code)).encode() + b"\n\n"


def error_body(message: str, kind: str, code: str) -> dict[str, Any]:
    """Return an error as OpenAI's API writes it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _json_of(event: bytes) -> Any:
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    try:
        return json.loads(b"\n".join(lines))
    except ValueError:
        return None
