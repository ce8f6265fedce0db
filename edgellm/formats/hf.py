"""Open a Hugging Face folder (config.json and safetensors files) as a Checkpoint. Tensors are mapped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint, file_ids
from edgellm.formats.config import ModelConfig
from edgellm.formats.hf_config import hf_config
from edgellm.formats.hf_names import gguf_names
from edgellm.formats.safetensors import map_safetensors
from edgellm.formats.shapes import check_shapes
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import round_to_ternary, unpack_ternary
from edgellm.formats.types import TENSOR_TYPES

_LARGEST_JSON = 64 << 20  # bytes; the index of a model with a million tensors would fit
_TERNARY = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def open_hf(path: str | Path) -> Checkpoint:
    """Open the folder `path` with config.json and model.safetensors, whole or in shards.

    metadata: "config", "generation_config" (empty if absent) and "tokenizer": the path of
    tokenizer.json as a text, None if the folder has none. Raises EdgeError, one sentence naming the
    file, for whatever is missing or wrong.
    """
    path = Path(path)
    ids = file_ids([path / "config.json", *sorted(path.glob("*.safetensors"))])
    raw = _read_json(path / "config.json")
    config = hf_config(path / "config.json", raw)
    files = _tensor_files(path)
    if config.n_layers > len(files):
        raise EdgeError(
            f"{path}: config.json says {config.n_layers} layers, but there are only {len(files)} tensors."
        )
    names = gguf_names(path, files, config.architecture, config.n_layers)
    tensors = _tensors(path, config, {name: files[original] for name, original in names.items()})
    check_shapes(path, config, tensors)
    generation, tokenizer = path / "generation_config.json", path / "tokenizer.json"
    metadata = {
        "config": raw,
        "generation_config": _read_json(generation) if generation.is_file() else {},
        "tokenizer": str(tokenizer) if tokenizer.is_file() else None,
    }
    return Checkpoint(path, "hf", config, tensors, metadata, ids)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a dictionary."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise EdgeError(
                f"{path}: the file has {path.stat().st_size} bytes, too many for what it should hold."
            )
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise EdgeError(
            f"{path}: no such file; give a .gguf file or a folder with config.json and model.safetensors."
        ) from None
    except OSError as error:
        raise EdgeError(f"{path}: the file cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "invalid text, number or nesting"
        raise EdgeError(f"{path}: the file is not valid JSON ({reason}); download it again.") from None
    if not isinstance(value, dict):
        raise EdgeError(f"{path}: the file should hold a JSON dictionary, not a {type(value).__name__}.")
    return value


def _tensor_files(path: Path) -> dict[str, Tensor]:
    """Every tensor of the folder, by the name that its file gives it."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return map_safetensors(single)
    if not index.is_file():
        hint = (
            "has only PyTorch weights, convert them"
            if list(path.glob("*.bin"))
            else "holds no model.safetensors"
        )
        raise EdgeError(f"{path}: the folder {hint}; give one with model.safetensors or its shards.")
    where = _read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise EdgeError(f"{index}: the file lacks the weight_map that tells which shard holds which tensor.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard or "\\" in shard or not shard.isprintable() or len(shard) > 255:
            raise EdgeError(f"{index}: the shard {shard[:80]!r} is not a plain file name.")
        if not (path / shard).is_file():
            raise EdgeError(f"{path / shard}: this shard of the model is missing; download it too.")
        for name, tensor in map_safetensors(path / shard).items():
            if name in tensors:
                raise EdgeError(f"{path / shard}: the tensor {name} is also in another shard.")
            tensors[name] = tensor
    for name, shard in where.items():
        if name not in tensors:
            raise EdgeError(
                f"{path / shard}: the tensor {name[:80]!r} is missing, which the index says is here."
            )
    return tensors


def _tensors(path: Path, config: ModelConfig, files: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their GGUF names, those of ternary matrices decoded."""
    quantization = config.extra.get("quantization")
    tensors: dict[str, Tensor] = {}
    for name, tensor in files.items():
        stem = name.removesuffix(".weight")
        if name == "output.weight" and config.extra["tie_word_embeddings"]:
            continue
        if quantization and stem.split(".")[-1] in _TERNARY and name != stem:
            tensors |= _ternary(path, quantization, stem, files)
        elif quantization and name.endswith(".scale"):
            continue  # taken with its matrix
        elif tensor.type not in TENSOR_TYPES:
            raise EdgeError(
                f"{path}: the tensor {tensor.name} has the type {tensor.type}, which is not supported."
            )
        else:
            tensors[name] = Tensor(name, tensor.type, tensor.shape, tensor.data)
    if "output.weight" not in tensors and not config.extra["tie_word_embeddings"]:
        raise EdgeError(f"{path}: the tensor lm_head.weight is missing, and config.json does not tie it.")
    return tensors


def _ternary(
    path: Path, quantization: dict[str, Any], stem: str, files: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    matrix, scale = files[f"{stem}.weight"], files.get(f"{stem}.scale")
    if len(matrix.shape) != 2:
        raise EdgeError(
            f"{path}: the tensor {matrix.name} has the shape {matrix.shape}, not rows and columns."
        )
    if matrix.type == "U8":
        if scale is None or scale.type not in TENSOR_TYPES:
            raise EdgeError(f"{path}: the packed tensor {matrix.name} lacks its weight_scale.")
        inverted = quantization.get("linear_class", "bitlinear") == "bitlinear"
        return unpack_ternary(path, stem, matrix, scale, inverted)
    if matrix.type not in ("F32", "F16", "BF16"):
        raise EdgeError(
            f"{path}: the tensor {matrix.name} has the type {matrix.type}, which is not supported."
        )
    if quantization.get("quantization_mode", "offline") == "online":
        return round_to_ternary(path, stem, matrix)
    if scale is not None and quantization.get("linear_class") != "autobitlinear":
        raise EdgeError(
            f"{path}: the tensor {matrix.name} has a weight_scale but is not packed, as it should be."
        )
    parts = {f"{stem}.weight": matrix} | ({f"{stem}.scale": scale} if scale else {})
    return {name: Tensor(name, part.type, part.shape, part.data) for name, part in parts.items()}
