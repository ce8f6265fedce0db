"""A complete llama GGUF of 0.2 M parameters with random weights: real metadata, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, CONTEXT = 64, 2, 4, 2, 16, 128, 128
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "Ġ a", "i n", "e r"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    """Special tokens, the 256 bytes as GPT-2 writes them, and the merged pieces."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    return SPECIAL + letters + [merge.replace(" ", "") for merge in MERGES]


def write_tiny_gguf(path: Path, *, chat_template: bool = True, context: int = CONTEXT, seed: int = 1) -> Path:
    """Write the model to `path` and return it; linear weights are Q8_0, norms F32."""
    rng = np.random.default_rng(seed)
    tokens = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    if chat_template:
        writer.add_chat_template(CHAT_TEMPLATE)

    def linear(name: str, rows: int, columns: int, scale: float) -> None:
        values = (rng.standard_normal((rows, columns)) * scale).astype(np.float32)
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(HIDDEN, dtype=np.float32))

    linear("token_embd.weight", len(tokens), HIDDEN, 1.0)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        linear(block + "attn_q.weight", HEADS * HEAD_DIM, HIDDEN, 0.3)
        linear(block + "attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN, 0.3)
        linear(block + "attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN, 0.3)
        linear(block + "attn_output.weight", HIDDEN, HEADS * HEAD_DIM, 0.3)
        norm(block + "ffn_norm.weight")
        linear(block + "ffn_gate.weight", FFN, HIDDEN, 0.3)
        linear(block + "ffn_up.weight", FFN, HIDDEN, 0.3)
        linear(block + "ffn_down.weight", HIDDEN, FFN, 0.3)
    norm("output_norm.weight")
    linear("output.weight", len(tokens), HIDDEN, 0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
