"""Count the tokens of a text: by a tokenizer file that the user names, or by a stated approximation."""

from __future__ import annotations

import re
from collections.abc import Callable

from qos_jax.errors import input_error
from qos_jax.files import Path

TokenCount = Callable[[str], int]
"""Number of tokens of a text; 0 of an empty one."""

APPROXIMATION = "token counts are estimated from the texts (approximate_tokens)"

# The pieces that GPT-like tokenizers cut a text into before they merge bytes; spaces go with what follows.
_PIECE = re.compile(r"'(?:[sdmt]|ll|ve|re)|[^\W\d_]+|\d{1,3}|[^\s\w]+|_+|\s*[\r\n]+|\s{2,}")
_WORD_LETTERS, _MORE_LETTERS = 10, 6  # of a word that is one token; of each further token of a longer one
_SIGNS = 2  # signs a token, in a run of them
_CJK = 0x2E80  # scripts from here on take about a token a letter, those between ASCII and here half


def approximate_tokens(text: str) -> int:
    """Return about how many tokens a GPT-like tokenizer makes of a text.

    Words of at most 10 letters, three digits, two signs and each line end or indent count 1. Its error is
    measured for English alone.
    """
    count = 0.0
    for match in _PIECE.finditer(text):
        piece = match.group()
        if piece[0].isalpha() and piece.isascii():
            count += 1 + max(0, -(-(len(piece) - _WORD_LETTERS) // _MORE_LETTERS))
        elif piece[0].isalpha():
            count += sum(1.0 if ord(letter) >= _CJK else 0.5 for letter in piece)
        elif piece[0].isdigit() or piece[0].isspace():
            count += 1
        else:
            count += -(-len(piece) // _SIGNS)
    return max(round(count), 1) if text else 0


def token_counter(tokenizer: Path | None) -> TokenCount:
    """Return a counter of tokens.

    Args:
      tokenizer: path of a ``tokenizer.json`` (Hugging Face's format), which needs the library
        ``tokenizers``; its special tokens are not counted. None = :func:`approximate_tokens`.

    Raises:
      InputError: the library is missing, or the file is no tokenizer.
    """
    if tokenizer is None:
        return approximate_tokens
    try:
        import tokenizers
    except ImportError:
        fault = "the library tokenizers is not installed"
        remedy = "run: pip install tokenizers, or leave the flag out to have tokens estimated"
        raise input_error(fault, field="tokenizer", remedy=remedy) from None
    try:
        with open(tokenizer, encoding="utf-8") as stream:
            loaded = tokenizers.Tokenizer.from_str(stream.read())
    except Exception as error:  # the library raises nothing narrower
        fault = f"is no tokenizer ({' '.join(str(error).split())[:80]})"
        raise input_error(fault, file=tokenizer, remedy="give the tokenizer.json of a model") from None
    loaded.no_truncation()  # which many files set to the model's window, and some pad to
    loaded.no_padding()
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
