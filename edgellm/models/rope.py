"""Frequencies of the rotary position embedding (RoFormer, arXiv:2104.09864) and their scaling rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint


class RopeTable(NamedTuple):
    """inv_freq: (dims / 2,) float32, radians per position. magnitude multiplies cos and sin."""

    inv_freq: np.ndarray
    magnitude: float = 1.0


def rope_table(checkpoint: Checkpoint, context: int) -> RopeTable:
    """The table for sequences of up to `context` tokens, by the rule that the file names.

    Llama 3 files in GGUF carry the finished divisors as rope_freqs.weight, Phi-3 files two sets of them
    as rope_factors_short.weight and rope_factors_long.weight; they stand above config.rope.scaling.
    Raises EdgeError for a rule that edgellm does not know or whose numbers are missing.
    """
    config = checkpoint.config
    scaling = dict(config.rope.scaling)
    scaling.setdefault("max_position_embeddings", config.context_length)
    dims = config.rope.dims or config.head_dim
    base = config.rope.base
    if "rope_freqs.weight" in checkpoint.tensors:
        return RopeTable(
            (plain(base, dims) / _factors(checkpoint, "rope_freqs.weight", dims)).astype(np.float32)
        )
    for length in ("long", "short"):
        if f"rope_factors_{length}.weight" in checkpoint.tensors:
            scaling[f"{length}_factor"] = _factors(checkpoint, f"rope_factors_{length}.weight", dims)
    rule = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if "long_factor" in scaling:
        rule = "longrope"  # early Phi-3 files call it "su" or "yarn"
    if rule not in _RULES:
        raise EdgeError(
            f"{checkpoint.path}: the RoPE scaling {rule!r} is not supported; known are {', '.join(_RULES)}."
        )
    try:
        with np.errstate(divide="raise", invalid="raise"):
            inv_freq, magnitude = _RULES[rule](base, dims, scaling, context)
    except KeyError as missing:
        raise EdgeError(f"{checkpoint.path}: the RoPE scaling {rule!r} lacks the number {missing}.") from None
    except (TypeError, ValueError, ArithmeticError):
        raise EdgeError(f"{checkpoint.path}: the RoPE scaling {rule!r} has an impossible number.") from None
    if inv_freq.shape != (dims // 2,) or not np.isfinite(inv_freq).all():
        raise EdgeError(f"{checkpoint.path}: the RoPE scaling {rule!r} does not fit {dims} dimensions.")
    return RopeTable(inv_freq.astype(np.float32), magnitude)


def local_rope_table(checkpoint: Checkpoint) -> RopeTable:
    """The unscaled table of the sliding-window layers, at config.rope.local_base (Gemma 3)."""
    rope = checkpoint.config.rope
    base = rope.base if rope.local_base is None else rope.local_base
    return RopeTable(plain(base, rope.dims or checkpoint.config.head_dim).astype(np.float32))


def trained_context(checkpoint: Checkpoint) -> int | None:
    """Tokens that a LongRoPE model was trained on, up to which its short factors hold; None otherwise."""
    scaling = checkpoint.config.rope.scaling
    if "long_factor" in scaling or "rope_factors_short.weight" in checkpoint.tensors:
        return scaling.get("original_max_position_embeddings")
    return None


def plain(base: float, dims: int) -> np.ndarray:
    """base^(-2 i / dims) for i < dims / 2, float64."""
    return base ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)


def _factors(checkpoint: Checkpoint, name: str, dims: int) -> np.ndarray:
    tensor = checkpoint.tensors[name]
    if tensor.elements != dims // 2:
        raise EdgeError(
            f"{checkpoint.path}: the tensor {name} has a shape that disagrees with the metadata: "
            f"{tensor.shape} instead of {(dims // 2,)}."
        )
    values = tensor.dequantize().reshape(-1).astype(np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise EdgeError(
            f"{checkpoint.path}: the tensor {name} holds a divisor that is not a positive number."
        )
    return values


Scaling = dict[str, Any]


def _default(base: float, dims: int, scaling: Scaling, context: int) -> tuple[np.ndarray, float]:
    return plain(base, dims), 1.0


def _linear(base: float, dims: int, scaling: Scaling, context: int) -> tuple[np.ndarray, float]:
    """Position interpolation (arXiv:2306.15595): positions are divided by `factor`."""
    return plain(base, dims) / scaling["factor"], 1.0


def _llama3(base: float, dims: int, scaling: Scaling, context: int) -> tuple[np.ndarray, float]:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between mixed."""
    inv_freq = plain(base, dims)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inv_freq / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return inv_freq * (keep + (1 - keep) / scaling["factor"]), 1.0


def _yarn(base: float, dims: int, scaling: Scaling, context: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv:2309.00071, section 3): dimensions that turn often are kept, slow ones interpolated."""
    inv_freq = plain(base, dims)
    trained = scaling.get("original_max_position_embeddings") or scaling["max_position_embeddings"]
    factor = scaling.get("factor") or scaling["max_position_embeddings"] / trained

    def dimension(turns: float) -> float:
        """Index of the pair that makes so many turns over the trained context."""
        return dims * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension(scaling.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dimension(scaling.get("beta_slow") or 1)), dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    return inv_freq * (1 - ramp + ramp / factor), _yarn_magnitude(scaling, factor)


def _yarn_magnitude(scaling: Scaling, factor: float) -> float:
    """Section 3.4: 0.1 ln(factor) + 1; files may give it, or the two parts of a ratio (DeepSeek)."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    log = math.log(factor) if factor > 1 else 0.0
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and all_dim:
        return (0.1 * mscale * log + 1) / (0.1 * all_dim * log + 1)
    return 0.1 * log + 1


def _longrope(base: float, dims: int, scaling: Scaling, context: int) -> tuple[np.ndarray, float]:
    """LongRoPE (arXiv:2402.13753): a searched divisor per pair, one set up to the trained context and
    one beyond it; the magnitude makes up for the higher entropy of longer contexts.
    """
    trained = scaling["original_max_position_embeddings"]
    divisors = np.asarray(scaling["long_factor" if context > trained else "short_factor"], np.float64)
    factor = scaling.get("factor") or scaling["max_position_embeddings"] / trained
    magnitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    if scaling.get("attention_factor") is not None:
        magnitude = float(scaling["attention_factor"])
    if divisors.shape != (dims // 2,):
        return divisors, magnitude  # rope_table reports the length
    return plain(base, dims) / divisors, magnitude


_RULES: dict[str, Callable[[float, int, Scaling, int], tuple[np.ndarray, float]]] = {
    "default": _default,
    "none": _default,
    "linear": _linear,
    "dynamic": _default,  # changes the base beyond the trained context only, which no Program exceeds
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
