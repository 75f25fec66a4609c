"""Recognise what prompts share with earlier ones: messages in the same order, by chains of digests."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import OrderedDict

from qos_jax.live.prompts import ClientRequest, Expectations
from qos_jax.live.twin import SharedPrefix

MAX_KNOWN = 2**17  # beginnings of prompts that are remembered, the latest used
_SYSTEM_ROLES = ("system", "developer")
_ANSWER_ROLE = "assistant"


class KnownPrefixes:
    """Which beginnings of prompts came before; no text is kept. Not for several threads."""

    def __init__(self, expectations: Expectations, most: int = MAX_KNOWN) -> None:
        """Know nothing yet; ``expectations`` say how many tokens texts likely are."""
        self._expectations, self._most = expectations, most
        self._groups: OrderedDict[bytes, int] = OrderedDict()
        self._fresh = itertools.count()

    def of(self, request: ClientRequest) -> SharedPrefix:
        """Return what a prompt shares with earlier ones, and remember its own beginnings.

        A prompt goes on with a conversation where it begins with all of an earlier prompt or of one of its
        beginnings. An answer that follows in it counts as shared: some server generated it.
        """
        digests = _chain(request)
        has_system = len(digests) > 1 and request.parts[0][0] in _SYSTEM_ROLES
        start = int(has_system)
        known = max((k for k in range(start, len(digests)) if digests[k] in self._groups), default=-1)
        shared, group = start, self._groups[digests[known]] if known >= 0 else next(self._fresh)
        if known >= 0:
            answered = known + 1 < len(digests) and request.parts[known + 1][0] == _ANSWER_ROLE
            shared = known + 1 + int(answered)
        system = -1
        if has_system:
            system = self._groups.get(digests[0], -1)
            system = next(self._fresh) if system < 0 else system
            self._remember(digests[0], system)
        for digest in digests[start:]:
            self._remember(digest, group)
        return SharedPrefix(
            system_group=system,
            system_tokens=self._expectations.tokens_of(request, start),
            group=group,
            tokens=self._expectations.tokens_of(request, shared),
        )

    def _remember(self, digest: bytes, group: int) -> None:
        self._groups[digest] = group
        self._groups.move_to_end(digest)
        if len(self._groups) > self._most:
            self._groups.popitem(last=False)


def _chain(request: ClientRequest) -> list[bytes]:
    """Return a digest of each beginning of a prompt, from its first part to all; tools come first."""
    last = hashlib.blake2b(json.dumps(request.body.get("tools")).encode(), digest_size=12).digest()
    found = []
    for role, text in request.parts:
        content = last + role.encode(errors="replace") + b"\0" + text.encode(errors="replace")
        last = hashlib.blake2b(content, digest_size=12).digest()
        found.append(last)
    return found
