"""The weights of a bundle and of a GGUF file, read without edgellm: by the gguf package and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np

SECTIONS = (("up", "down"), ("gate",))
BLOCKS = {"q4_0": 18, "q8_0": 34}  # bytes of 32 weights


def source_weights(path: Path) -> dict[str, np.ndarray]:
    """float32 by tensor name, factors multiplied in."""
    found = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in gguf.GGUFReader(path).tensors
    }
    for name, factor in list(found.items()):
        if name.endswith(".scale"):
            found[name.replace(".scale", ".weight")] *= factor
    return found


def bundle_weights(path: Path) -> dict[str, np.ndarray]:
    """float32 by tensor name, of what is in slots, in the bundle's order: down is (hidden, neurons) again."""
    from safetensors.numpy import load_file

    slots = json.loads((path / "manifest.json").read_text())["slots"]
    hidden, neurons, per_slot, codecs = (slots[key] for key in ("hidden", "neurons", "per_slot", "codecs"))
    sizes = {role: _nbytes(role, codec, hidden) for role, codec in codecs.items()}
    places, stride = {}, 0  # role -> offset of neuron 0 in a slot, step to the next one
    for section in SECTIONS:
        roles = [role for role in section if role in codecs]
        each = sum(sizes[role] for role in roles)
        for i, role in enumerate(roles):
            places[role] = stride + sum(sizes[r] for r in roles[:i]), each
        stride += -(-each * per_slot // slots["alignment"]) * slots["alignment"]
    step = -(-(-(-neurons // per_slot) * stride) // (2 << 20)) * (2 << 20)
    content = (path / "ffn.bin").read_bytes()
    scales = load_file(path / "neurons.safetensors").get("down_scale")
    found = {}
    for layer in range(slots["layers"]):
        for role, (first, each) in places.items():
            vectors = []
            for neuron in range(neurons):
                begin = (2 << 20) + layer * step + neuron // per_slot * stride
                begin += first + neuron % per_slot * each
                vectors.append(content[begin : begin + sizes[role]])
            data = np.frombuffer(b"".join(vectors), np.uint8).reshape(neurons, -1)
            matrix = _decoded(data, role, codecs[role], hidden)
            if role == "down":
                matrix = matrix.T if codecs[role] != "t2" else matrix.T * scales[layer][:, None]
            found[f"blk.{layer}.ffn_{role}.weight"] = matrix
    return found


def _nbytes(role: str, codec: str, hidden: int) -> int:
    if codec == "t2":
        return hidden // 4 + 4 * (role != "down")
    return hidden // 32 * BLOCKS[codec]


def _decoded(data: np.ndarray, role: str, codec: str, hidden: int) -> np.ndarray:
    """float32 (n, hidden) of bytes (n, nbytes); of a ternary down the trits."""
    if codec != "t2":
        scales = np.ascontiguousarray(data[:, : hidden // 16]).view("<f2").astype(np.float32)
        body = data[:, hidden // 16 :]
        if codec == "q4_0":
            body = body.reshape(len(data), -1, 32)
            codes = (
                np.concatenate([body & 15, body >> 4], axis=2).reshape(len(data), -1).astype(np.float32) - 8
            )
        else:
            codes = body.astype(np.float32) - 128
        return codes * np.repeat(scales, 32, axis=1)
    body = data[:, : hidden // 4].reshape(len(data), -1, 1, 16)
    trits = np.concatenate([(body >> shift) & 3 for shift in (0, 2, 4, 6)], axis=2)
    values = trits.reshape(len(data), -1)[:, :hidden].astype(np.float32) - 1
    return values if role == "down" else values * np.ascontiguousarray(data[:, -4:]).view("<f4")
