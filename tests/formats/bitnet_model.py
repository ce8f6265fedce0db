"""Tiny BitNet models as bitnet.cpp writes them, and the same as TQ2_0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.formats.bitnet_encode import NUMBERS, Tiling, encode, trits
from tests.formats.tiny import gguf_bytes, gguf_keys, tensor_shapes

HIDDEN, FFN, KV = 256, 512, 128
TILINGS: dict[str, dict[tuple[int, int], Tiling]] = {
    "tl1": {
        (256, 256): (128, 64, 64), (128, 256): (64, 64, 32),
        (512, 256): (256, 128, 32), (256, 512): (256, 128, 32),
    },
    "tl2": {
        (256, 256): (128, 96, 32), (128, 256): (64, 192, 32),
        (512, 256): (256, 96, 32), (256, 512): (256, 96, 32),
    },
}  # fmt: skip
LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
SCALE = 2.0**-5  # a float16 number, so that TQ2_0 blocks can hold it


def write_model(
    path: Path,
    kind: str,
    raw: Mapping[str, bytes] | None = None,
    types: Mapping[str, int] | None = None,
    more: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """A BitNet model whose linears are of `kind`, one of bitnet.cpp's or TQ2_0, with a factor of SCALE.

    raw and types replace the bytes and type numbers of tensors; more: float32 tensors to be added.
    """
    sizes = {32: HIDDEN, 64: FFN, 16: KV, 40: 40}  # of tensor_shapes' model
    keys = gguf_keys("bitnet-25") | {
        "bitnet-25.embedding_length": HIDDEN,
        "bitnet-25.feed_forward_length": FFN,
    }
    shapes = {
        name: tuple(sizes[extent] for extent in shape) for name, shape in tensor_shapes("bitnet").items()
    }
    rng = np.random.default_rng(2)
    infos, data = [], b""
    for number, (name, shape) in enumerate((shapes | dict(more or {})).items()):
        if name.split(".")[-2] in LINEARS and len(shape) == 2:
            content, type_number = linear(kind, trits(*shape, seed=number))
        else:
            content, type_number = rng.uniform(0.5, 1.5, shape).astype("<f4").tobytes(), 0
        content = (raw or {}).get(name, content)
        infos.append((name, shape[::-1], (types or {}).get(name, type_number), len(data)))
        data += content + bytes(-len(content) % 32)
    path.write_bytes(gguf_bytes([("general.architecture", "bitnet-25"), *keys.items()], infos, data))
    return path


def linear(kind: str, weights: np.ndarray) -> tuple[bytes, int]:
    import gguf

    if kind == "TQ2_0":
        number = gguf.GGMLQuantizationType.TQ2_0
        return gguf.quants.quantize(weights * np.float32(SCALE), number).tobytes(), int(number)
    tiling = TILINGS.get(kind, {}).get(weights.shape)
    return encode(kind, weights, SCALE, tiling), NUMBERS[kind]
