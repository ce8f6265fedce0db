"""How one linear's matrix becomes TQ1_0 or TQ2_0.

    TQ1_0 and TQ2_0 of a file   the same codes and block scales
    ternary, presented as       the same codes; the factor beside them goes into the blocks where a float16
    TQ2_0 with a factor         holds it exactly, else it stays the tensor "NAME.scale"
    floats that are ternary     every weight is 0, s or -s, with one s for the matrix or for each block of
                                256: s is the block scale, or for one that is no float16 the factor
    other floats of a BitNet    master weights, rounded as the model rounds them when it runs (ternary.py)

So nothing is rounded but master weights. Whatever else comes is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import LazyTensor, round_to_ternary
from edgellm.formats.ternary_blocks import BLOCK, TERNARY_TYPES, pack_blocks, unpack_blocks

_WEIGHTS_AT_ONCE = 1 << 22  # 16 MiB as float32
_MASTER_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class TernaryMatrix:
    """pieces(): its rows in the type asked for. factor: what "NAME.scale" must hold; None: no such tensor."""

    pieces: Callable[[], Iterator[np.ndarray]]
    factor: np.float32 | None
    rounded: bool = False  # were master weights rounded?


def row_slices(tensor: Tensor, at_once: int = _WEIGHTS_AT_ONCE) -> Iterator[slice]:
    """Slices of rows that cover the tensor, each of about `at_once` elements; of a vector, the whole."""
    if len(tensor.shape) == 1:
        return iter([slice(None)])
    step = max(1, at_once // tensor.shape[-1])
    return (slice(i, i + step) for i in range(0, tensor.shape[0], step))


def forget(tensor: Tensor) -> None:
    """Let go of the bytes of a tensor that computes them."""
    if isinstance(tensor, LazyTensor):
        tensor.forget()


def ternary_matrix(
    path: Path, tensor: Tensor, scale: Tensor | None, target: str, bitnet: bool
) -> TernaryMatrix:
    """The matrix `tensor` of the model at `path`, with the factor `scale` beside it, as TQ1_0 or TQ2_0.

    bitnet: master weights may be rounded. Raises EdgeError for a matrix that is not ternary, and for rows
    that are not whole blocks.
    """
    if tensor.shape[-1] % BLOCK:
        raise EdgeError(
            f"{path}: the matrix {tensor.name} has rows of {tensor.shape[-1]} weights, and {target} takes "
            f"multiples of {BLOCK} alone; convert the model to F16."
        )
    given = None if scale is None else np.float32(scale.dequantize().reshape(-1)[0])
    if tensor.type in TERNARY_TYPES:
        if isinstance(tensor, LazyTensor):
            return _presented(path, tensor, given, target)
        return TernaryMatrix(lambda: _recoded(path, tensor, target), given)
    found = _find_scales(tensor)
    if found is not None:
        return _floats(tensor, found, given, target)
    if bitnet and scale is None and tensor.type in _MASTER_TYPES:
        weight, factor = round_to_ternary(path, tensor.name.removesuffix(".weight"), tensor).values()
        return _presented(path, weight, np.float32(factor.dequantize()[0]), target, rounded=True)
    why = "the architecture is not BitNet's"
    if bitnet:
        why = "these are no master weights that BitNet would round"
    raise EdgeError(
        f"{path}: the matrix {tensor.name} ({tensor.type}) is not ternary and {why}, so {target} would ruin "
        "it; choose another --type."
    )


def _presented(
    path: Path, tensor: Tensor, factor: np.float32 | None, target: str, rounded: bool = False
) -> TernaryMatrix:
    """A matrix that the checkpoint computes, with the block scale 1 and its factor beside it."""
    if factor is None or not _is_half(factor):
        return TernaryMatrix(lambda: _recoded(path, tensor, target), factor, rounded)
    return TernaryMatrix(lambda: _recoded(path, tensor, target, factor), None, rounded)


def _recoded(
    path: Path, tensor: Tensor, target: str, factor: np.float32 | None = None
) -> Iterator[np.ndarray]:
    """The rows of a TQ tensor as `target`; a factor is multiplied into its block scales."""
    try:
        for rows in row_slices(tensor):
            codes, scales = unpack_blocks(tensor.data[rows], tensor.type)
            if factor is None and tensor.type == target:
                yield tensor.data[rows]
                continue
            if factor is not None:
                wide = scales.astype(np.float32) * factor
                scales = wide.astype(np.float16)
                if not (scales == wide).all():
                    raise EdgeError(
                        f"{path}: the block scales of {tensor.name} times its factor {factor:g} fit no "
                        "float16; convert the model to F16."
                    )
            yield pack_blocks(codes, scales, target)
    except ValueError:
        raise EdgeError(
            f"{path}: the tensor {tensor.name} holds values other than -1, 0 and 1; it is damaged."
        ) from None
    finally:
        forget(tensor)


@dataclass(frozen=True)
class _Scales:
    """Of ternary floats: `one` for the whole matrix, or None if the blocks have their own."""

    one: np.float32 | None


def _find_scales(tensor: Tensor) -> _Scales | None:
    """None if the weights are not ternary, or have block scales that no float16 holds."""
    low, high = np.float32(np.inf), np.float32(0)
    halves = True
    for rows in row_slices(tensor):
        blocks = np.abs(tensor.dequantize(rows)).reshape(-1, BLOCK)
        largest = blocks.max(axis=1, keepdims=True)
        if not np.isfinite(largest).all() or not ((blocks == 0) | (blocks == largest)).all():
            return None
        used = largest[largest > 0]
        if used.size:
            low, high = min(low, used.min()), max(high, used.max())
            halves = halves and _is_half(used)
    if high == 0 or low == high:
        return _Scales(np.float32(high))
    return _Scales(None) if halves else None


def _floats(tensor: Tensor, scales: _Scales, given: np.float32 | None, target: str) -> TernaryMatrix:
    one, factor = scales.one, given
    if one is not None and not _is_half(one):
        factor = one if given is None else one * given
        one = np.float32(1)

    def pieces() -> Iterator[np.ndarray]:
        for rows in row_slices(tensor):
            values = tensor.dequantize(rows)
            blocks = np.abs(values).reshape(len(values), -1, BLOCK).max(axis=-1)
            halves = blocks if one is None else np.full_like(blocks, one)
            codes = (np.sign(values) + 1).astype(np.uint8)
            yield pack_blocks(codes, halves.astype(np.float16), target)

    return TernaryMatrix(pieces, factor)


def _is_half(value: np.float32 | np.ndarray) -> bool:
    """Does a float16 hold every value exactly?"""
    with np.errstate(over="ignore"):
        return bool(np.all(np.asarray(value, np.float16).astype(np.float32) == value))
