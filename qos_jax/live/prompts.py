"""Read a client's request: its text, its limits, how many tokens it likely is, and what answers to expect."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from qos_jax.live.twin import Newcomer
from qos_jax.predictors.predictor import Predictor

_TOKENS_PER_BYTE = 0.25  # before the first answer says how many its prompt had
_MEMORY = 0.98  # weight of earlier prompts in it, per answer
_TOKENS_PER_MESSAGE = 4  # of a chat template
_PART_CHARACTERS, _PART_TOKENS = 256, 64  # of a plain prompt, which has no messages


class BadRequestError(ValueError):
    """A request that no server could answer; the message is for the client."""


@dataclasses.dataclass(frozen=True)
class ClientRequest:
    """A request as far as routing needs to know it."""

    body: dict[str, Any]
    text: str  # of the prompt, all its messages
    messages: int
    prompt_tokens: int | None  # where the prompt is given as tokens
    max_tokens: int | None  # that its answer may have
    is_streamed: bool
    wants_usage: bool  # of a stream: the client asked for its token counts
    parts: tuple[tuple[str, str], ...]  # (role, text) of its messages; of a plain prompt pieces, role empty


def read_request(raw: bytes, *, is_chat: bool) -> ClientRequest:
    """Return the request in a body.

    Raises:
      BadRequestError: it is no JSON object, or lacks what the endpoint needs.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequestError("the body is no JSON object")
    tokens, messages, parts = None, 0, []
    if is_chat:
        given = body.get("messages")
        if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
            raise BadRequestError("'messages' must be a list of at least one message")
        parts = [(str(one.get("role")), _text_of(one.get("content"))) for one in given]
        text, messages = "\n".join(text for _, text in parts), len(given)
    else:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
            text, tokens = "", len(prompt)
            parts = [("", repr(piece)) for piece in _cut(prompt, _PART_TOKENS)]
        elif isinstance(prompt, str):
            text = prompt
        elif isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            text = prompt[0]
        else:
            raise BadRequestError("'prompt' must be one text, or a list of tokens")
        parts = parts or [("", piece) for piece in _cut(text, _PART_CHARACTERS)]
    given = (body.get(name) for name in ("max_completion_tokens", "max_tokens"))
    limits = [limit for limit in given if isinstance(limit, int) and limit > 0]
    options = body.get("stream_options")
    wants = isinstance(options, dict) and bool(options.get("include_usage"))
    return ClientRequest(
        body,
        text,
        messages,
        tokens,
        min(limits, default=None),
        body.get("stream") is True,
        wants,
        tuple(parts),
    )


def _cut(prompt: Any, size: int) -> list[Any]:
    """Return the pieces of a text or list, of ``size`` each, the last of the rest."""
    return [prompt[at : at + size] for at in range(0, len(prompt), size)]


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


class Expectations:
    """What is expected of a request: tokens of its prompt, length and quality of each expert's answer."""

    def __init__(
        self,
        quality: np.ndarray | None,
        output_tokens: np.ndarray | None,
        predictor: Predictor | None = None,
        order: list[int] | None = None,
    ) -> None:
        """Keep the experts' means [N], or a predictor with the indices of the N experts among its own."""
        self._quality, self._output_tokens = quality, output_tokens
        self._predictor, self._order = predictor, order
        self._per_byte = _TOKENS_PER_BYTE

    @property
    def reads_text(self) -> bool:
        """Whether the text is predicted from, which takes longer than the event loop may be kept."""
        return self._predictor is not None

    def newcomer(self, request: ClientRequest) -> Newcomer:
        """Return the request as predicted for every expert."""
        if self._predictor is not None:
            found = self._predictor.predict([request.text])
            quality, tokens = found.quality[0, self._order], found.output_tokens[0, self._order]
        else:
            assert self._quality is not None
            assert self._output_tokens is not None
            quality, tokens = self._quality, self._output_tokens
        if request.max_tokens is not None:
            tokens = np.minimum(tokens, np.float32(request.max_tokens))
        tokens = np.maximum(tokens, np.float32(1.0))
        return Newcomer(self.prompt_tokens(request), tokens.astype(np.float32), quality.astype(np.float32))

    def prompt_tokens(self, request: ClientRequest) -> int:
        """Return how many tokens the prompt likely has."""
        if request.prompt_tokens is not None:
            return max(request.prompt_tokens, 1)
        guess = self._per_byte * len(request.text.encode(errors="replace"))
        return max(round(guess) + _TOKENS_PER_MESSAGE * request.messages, 1)

    def tokens_of(self, request: ClientRequest, parts: int) -> int:
        """Return how many tokens the first ``parts`` of the prompt likely have."""
        if parts >= len(request.parts):
            return self.prompt_tokens(request)
        if request.prompt_tokens is not None:
            return parts * _PART_TOKENS
        size = sum(len(text.encode(errors="replace")) for _, text in request.parts[:parts])
        return round(self._per_byte * size) + _TOKENS_PER_MESSAGE * min(parts, request.messages)

    def learn(self, request: ClientRequest, prompt_tokens: int) -> None:
        """Correct the tokens per byte by a count that a server reported."""
        size = len(request.text.encode(errors="replace"))
        if request.prompt_tokens is None and size >= 32:
            own = (prompt_tokens - _TOKENS_PER_MESSAGE * request.messages) / size
            own = min(max(own, 0.02), 2.0)
            self._per_byte = _MEMORY * self._per_byte + (1.0 - _MEMORY) * own
