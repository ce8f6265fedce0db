"""What a model file says about the shape of its network, in one form for every file format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# One file each under edgellm/models/.
SUPPORTED_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "opt", "bitnet")


@dataclass
class RopeConfig:
    """Rotary position embedding. `scaling` keeps the Hugging Face dictionary form, also for GGUF files."""

    base: float = 10000.0
    dims: int = 0  # rotated dimensions of each head; 0 means head_dim
    style: Literal["interleaved", "half"] = "half"  # how this file's q and k rows are ordered
    scaling: dict[str, Any] = field(default_factory=dict)  # {"rope_type": "llama3", "factor": 8.0, ...}
    local_base: float | None = None  # Gemma 3: base of the sliding-window layers


@dataclass
class ModelConfig:
    """Hyper-parameters as the architectures under `models/` read them."""

    architecture: str  # file name under edgellm/models/: "llama", "qwen2", ...
    context_length: int
    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_size: int
    norm_eps: float
    rope: RopeConfig = field(default_factory=RopeConfig)
    activation: str = "silu"
    activation_threshold: float = 0.0  # values of a ReLU up to this are 0: FATReLU
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] | None = None  # per layer: does the window apply; None: to all
    attention_scale: float | None = None  # None: 1 / sqrt(head_dim)
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    embedding_scale: float = 1.0
    norm_weight_offset: float = 0.0  # 1.0 where the file stores norm weights minus one (HF Gemma)
    input_rounding: Literal["int8"] | None = None  # of the linears in the blocks: ops.InputRounding
    extra: dict[str, Any] = field(default_factory=dict)  # what only one architecture needs
