"""The shapes of models that are useful to measure with, by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A model's numbers. tied: the output matrix is the embedding table; bitnet: of llama.cpp's architecture
    of this name, with norms before the output matrices of attention and FFN."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    tied: bool = False
    rope_base: float = 10000.0
    bitnet: bool = False

    @property
    def architecture(self) -> str:
        """GGUF's general.architecture."""
        return "bitnet" if self.bitnet else "llama"

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Tensor name -> (rows, columns) of every matrix, in the order of a GGUF file."""
        found = {"token_embd.weight": (self.vocab, self.hidden)}
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for layer in range(self.layers):
            block = f"blk.{layer}."
            found[block + "attn_q.weight"] = (queries, self.hidden)
            found[block + "attn_k.weight"] = (keys, self.hidden)
            found[block + "attn_v.weight"] = (keys, self.hidden)
            found[block + "attn_output.weight"] = (self.hidden, queries)
            found[block + "ffn_gate.weight"] = (self.ffn, self.hidden)
            found[block + "ffn_up.weight"] = (self.ffn, self.hidden)
            found[block + "ffn_down.weight"] = (self.hidden, self.ffn)
        if not self.tied:
            found["output.weight"] = (self.vocab, self.hidden)
        return found

    def norms(self) -> dict[str, int]:
        """Tensor name -> width of every norm vector."""
        each = {"attn_norm": self.hidden, "ffn_norm": self.hidden}
        if self.bitnet:
            each |= {"attn_sub_norm": self.heads * self.head_dim, "ffn_sub_norm": self.ffn}
        found = {f"blk.{i}.{name}.weight": width for i in range(self.layers) for name, width in each.items()}
        return found | {"output_norm.weight": self.hidden}


SHAPES = {
    # for tests: every quantisation's block divides its widths
    "tiny": Shape(2, 256, 512, 8, 2, 32, 512, 1024),
    # HuggingFaceTB/SmolLM2-135M
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152, 8192, tied=True, rope_base=100000.0),
    # TinyLlama/TinyLlama-1.1B
    "llama-1.1b": Shape(22, 2048, 5632, 32, 4, 64, 32000, 2048),
    # 1bitLLM/bitnet_b1_58-large, the model of TeLLMe
    "bitnet-0.7b": Shape(24, 1536, 4096, 16, 16, 96, 32002, 2048, tied=True, bitnet=True),
    # meta-llama/Llama-3.2-3B, without its RoPE scaling, which costs no time
    "llama-3b": Shape(28, 3072, 8192, 24, 8, 128, 128256, 8192, tied=True, rope_base=500000.0),
}
