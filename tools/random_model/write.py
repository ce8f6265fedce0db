"""Writes a GGUF model with random weights, a few rows at a time."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.types import row_bytes
from tools.random_model.shapes import Shape
from tools.random_model.vocabulary import vocabulary

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")
CHUNK = 1 << 22  # weights that are made at once: 16 MiB as float32
ALIGNMENT = 32  # of a tensor's data; GGUF's default
Progress = Callable[[int, int], None]  # bytes of weights written, of how many


def write(
    path: Path, shape: Shape, type_name: str, *, outer: str | None = None, seed: int = 0,
    name: str = "random", progress: Progress | None = None,
) -> int:  # fmt: skip
    """Write a model of `shape` with random weights to `path`; returns the file's size in bytes.

    Matrices are quantised to `type_name` by ggml's rules, norms are float32 near 1. Ternary types get
    ternary weights. `outer` is the type of embeddings and output: by default the same, and with ternary
    types float16, as their converters do. Activations stay near 1
    in every layer: a matrix of k columns has a deviation of 1 / sqrt(k), and what is added to the residual
    is smaller by sqrt(2 layers). The same arguments write the same bytes.

    The file appears under its name when it is complete. Raises EdgeError for a type that is not in TYPES
    or does not fit the shape, and where the file cannot be written.
    """
    for one in filter(None, (type_name, outer)):
        if one not in TYPES:
            raise EdgeError(f"A random model cannot be of type {one}; choose one of {', '.join(TYPES)}.")
    plan = _plan(shape, type_name, outer or ("F16" if type_name.startswith("TQ") else type_name))
    total = sum(rows * row_bytes(kind, columns) for (rows, columns), kind in plan.values())
    done = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
            part = Path(scratch) / "model.gguf"
            _write_header(part, shape, plan, name)
            with part.open("ab") as file:
                for number, (tensor, ((rows, columns), kind)) in enumerate(plan.items()):
                    _pad(file)
                    rng = np.random.default_rng([seed, number])
                    for values in _values(rng, tensor, rows, columns, shape, kind):
                        done += file.write(_encoded(values, kind))
                        if progress:
                            progress(done, total)
                _pad(file)
            size = part.stat().st_size
            os.replace(part, path)
    except OSError as error:
        raise EdgeError(f"{path}: the model could not be written ({error.strerror}).") from None
    return size


Plan = dict[str, tuple[tuple[int, int], str]]  # tensor -> ((rows, columns), type); vectors have one row


def _plan(shape: Shape, type_name: str, outer: str) -> Plan:
    plan: Plan = {}
    for tensor, (rows, columns) in shape.matrices().items():
        plan[tensor] = (rows, columns), type_name if tensor.startswith("blk.") else outer
    return plan | {norm: ((1, width), "F32") for norm, width in shape.norms().items()}


def _write_header(path: Path, shape: Shape, plan: Plan, name: str) -> None:
    import gguf

    tokens, merges = vocabulary(shape.vocab)
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(name)
    writer.add_context_length(shape.context)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    for tensor, ((rows, columns), kind) in plan.items():
        dims = (columns,) if tensor.endswith("norm.weight") else (rows, columns)
        nbytes = rows * row_bytes(kind, columns)
        ggml = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(tensor, dims, np.dtype(np.float32), nbytes, raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _values(
    rng: np.random.Generator, tensor: str, rows: int, columns: int, shape: Shape, kind: str
) -> Iterator[np.ndarray]:
    """The tensor's float32 values, (some rows, columns) at a time."""
    if tensor.endswith("norm.weight"):
        yield (1 + 0.1 * rng.standard_normal((rows, columns))).astype(np.float32)
        return
    deviation = 1.0 if tensor.startswith("token_embd") and not shape.tied else 1 / math.sqrt(columns)
    if tensor.endswith(("attn_output.weight", "ffn_down.weight")):
        deviation /= math.sqrt(2 * shape.layers)
    ternary = kind.startswith("TQ")
    step = max(1, CHUNK // columns)
    for first in range(0, rows, step):
        size = (min(step, rows - first), columns)
        if ternary:  # -1, 0 and 1, equally often, have a deviation of sqrt(2 / 3)
            values = rng.integers(-1, 2, size, dtype=np.int8).astype(np.float32)
            values *= np.float32(deviation / math.sqrt(2 / 3))
        else:
            values = rng.standard_normal(size, dtype=np.float32)
            values *= np.float32(deviation)
        yield values


def _encoded(values: np.ndarray, kind: str) -> memoryview:
    """The bytes of a type's blocks, by the gguf package's quantisers."""
    import gguf

    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return np.ascontiguousarray(blocks).view(np.uint8).data


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
