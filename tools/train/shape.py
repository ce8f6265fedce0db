"""The shape of the tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Widths are multiples of 256, as GGUF's ternary types want."""

    vocab: int = 4096
    hidden: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 4
    ffn: int = 1024
    context: int = 512
    rope_base: float = 10000.0
    eps: float = 1e-5

    def hf_config(self) -> dict[str, Any]:
        """config.json of the Hugging Face architecture."""
        return {
            "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
            "hidden_size": self.hidden, "intermediate_size": self.ffn, "vocab_size": self.vocab,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "max_position_embeddings": self.context,
            "rms_norm_eps": self.eps, "rope_theta": self.rope_base, "tie_word_embeddings": True,
            "bos_token_id": 0, "eos_token_id": 0,
            "quantization_config": {
                "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"
            },
        }  # fmt: skip
