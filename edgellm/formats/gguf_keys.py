"""The metadata of a GGUF file that is made from another model file.

From a GGUF file every value is copied as its bytes; what describes the file rather than the model is left
out. From a Hugging Face folder the keys are those that llama.cpp's convert_hf_to_gguf.py writes for BitNet.
"""

from __future__ import annotations

from typing import Any

from edgellm.errors import EdgeError
from edgellm.formats.bitnet_cpp import BitnetOptions
from edgellm.formats.checkpoint import Checkpoint

# By activation. llama.cpp has the architecture "bitnet" alone, with SiLU; "bitnet-b1.58", with ReLU squared,
# is that of Microsoft's fork of it, bitnet.cpp.
ARCHITECTURES = {"silu": "bitnet", "relu2": "bitnet-b1.58"}
_OF_THE_FILE = ("general.alignment", "general.file_type", "general.quantization_version")
# llama_ftype in llama.h
_FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
}
FILE_TYPES = tuple(_FILE_TYPES)
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


def file_keys(checkpoint: Checkpoint, type_name: str) -> dict[str, Any]:
    """Key -> value as gguf_writer.encode_value takes it, without a tokenizer where the source is a folder.

    Raises EdgeError for a folder of another architecture than BitNet.
    """
    keys = _copied(checkpoint) if checkpoint.format == "gguf" else _of_folder(checkpoint)
    keys["general.quantization_version"] = _QUANTIZATION_VERSION
    keys["general.file_type"] = _FILE_TYPES[type_name]
    return keys


def _copied(checkpoint: Checkpoint) -> dict[str, Any]:
    from edgellm.formats.gguf_reader import CheckedReader  # late: gguf is slow to import

    keys = {}
    for name, field in CheckedReader(checkpoint.path, BitnetOptions.from_environment()).fields.items():
        if not name.startswith(("GGUF.", "split.")) and name not in _OF_THE_FILE:
            keys[name] = b"".join(part.tobytes() for part in field.parts[2:])  # after the name: type, value
    return keys


def _of_folder(checkpoint: Checkpoint) -> dict[str, Any]:
    config, path = checkpoint.config, checkpoint.path
    if config.architecture != "bitnet":
        raise EdgeError(
            f"{path}: a Hugging Face folder can be converted if its architecture is bitnet, and this is "
            f"{config.architecture}; make a GGUF file with llama.cpp's convert_hf_to_gguf.py first."
        )
    if config.activation not in ARCHITECTURES:
        raise EdgeError(
            f"{path}: no GGUF architecture is a BitNet with the activation {config.activation}; known are "
            f"{' and '.join(ARCHITECTURES)}."
        )
    rope = config.rope
    rule, factor = rope.scaling.get("rope_type", "linear"), float(rope.scaling.get("factor", 1.0))
    if rule != "linear":
        raise EdgeError(
            f"{path}: RoPE scaling by the rule {rule} has no place in a GGUF file of this architecture."
        )
    architecture = ARCHITECTURES[config.activation]
    own = {
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_size,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": rope.dims or config.head_dim,
        "rope.freq_base": rope.base,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": factor,
    }
    general = {"general.architecture": architecture, "general.name": path.resolve().name}
    return general | {f"{architecture}.{key}": value for key, value in own.items()}
