"""Fixtures that write models into the test's own folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.formats.bitnet_encode import write_config
from tests.formats.bitnet_model import TILINGS, write_model
from tests.formats.tiny import (
    add_key,
    gguf_bytes,
    gguf_keys,
    hf_config,
    hf_name,
    tensor_shapes,
    write_safetensors,
)

WriteGguf = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """write(architecture="llama", keys=..., tensors=..., name=...) -> path, through gguf.GGUFWriter.

    keys are short ones ("rope.freq_base") or whole ones ("general.name"); a value of None drops a key.
    tensors: name -> float32 array, (shape, type, bytes) or None to drop one.
    """

    def write(
        architecture: str = "llama",
        keys: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Any] | None = None,
        name: str = "tiny.gguf",
    ) -> Path:
        import gguf

        rng = np.random.default_rng(1)
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, architecture)
        own = ("general.", "tokenizer.", "split.")
        values = gguf_keys(architecture)
        for key, value in (keys or {}).items():
            values[key if key.startswith(own) else f"{architecture}.{key}"] = value
        for key, value in values.items():
            if key == "general.alignment":
                writer.add_custom_alignment(value)
            elif value is not None:
                add_key(writer, key, value)
        arrays: dict[str, Any] = {
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in tensor_shapes(architecture).items()
        }
        arrays |= tensors or {}
        for tensor, array in arrays.items():
            if isinstance(array, tuple):
                raw, kind = array
                writer.add_tensor(tensor, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
            elif array is not None:
                writer.add_tensor(tensor, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def raw_gguf(tmp_path: Path) -> Callable[..., Path]:
    def write(*args: Any, **kwargs: Any) -> Path:
        path = tmp_path / "raw.gguf"
        path.write_bytes(gguf_bytes(*args, **kwargs))
        return path

    return write


@pytest.fixture
def write_hf(tmp_path: Path) -> Callable[..., Path]:
    """write(architecture, config=..., tensors=...) -> folder. A None drops a key or a tensor.

    tensors are named as in the folder; the ones of the tiny model are float32.
    """

    def write(
        architecture: str = "llama",
        config: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Any] | None = None,
        name: str = "model",
        file: str = "model.safetensors",
    ) -> Path:
        rng = np.random.default_rng(1)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        values = {k: v for k, v in (hf_config(architecture) | dict(config or {})).items() if v is not None}
        (folder / "config.json").write_text(json.dumps(values))
        arrays: dict[str, Any] = {
            hf_name(architecture, name): rng.normal(size=shape).astype(np.float32)
            for name, shape in tensor_shapes(architecture).items()
        }
        arrays |= tensors or {}
        write_safetensors(folder / file, {k: v for k, v in arrays.items() if v is not None})
        return folder

    return write


@pytest.fixture
def bitnet_model(tmp_path: Path) -> Callable[..., Path]:
    """bitnet_model(kind, ...) -> path of a model by bitnet_model.write_model, with its kernel_config.ini."""

    def write(kind: str, *args: Any, **kwargs: Any) -> Path:
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        if kind in TILINGS:
            write_config(folder / "kernel_config.ini", TILINGS[kind])
        return write_model(folder / "model.gguf", kind, *args, **kwargs)

    return write
