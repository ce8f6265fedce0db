"""Do the tensors of a checkpoint have the shapes that its configuration announces?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from edgellm.errors import EdgeError
from edgellm.formats.config import ModelConfig
from edgellm.formats.tensor import Tensor

# Tensors of the blocks that carry no weights of the forward pass, or only what rope.py reads.
_IGNORED = re.compile(r"blk\.\d+\.(attn_rot_embd|rope_freqs|rope_factors_(long|short))\.weight")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


def check_shapes(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raises EdgeError for numbers that contradict each other, and for a tensor that is missing, has
    another shape than the configuration says, or belongs to something the architecture does not have.
    """
    _check_numbers(path, config)
    required, optional = _outer_shapes(config)
    _compare(path, config, tensors, "", required, optional)
    required, optional = _block_shapes(config, fused=_is_fused(tensors))
    for layer in range(config.n_layers):
        _compare(path, config, tensors, f"blk.{layer}.", required, optional)
    for name in tensors:
        match = _BLOCK.fullmatch(name)
        if match is None or _IGNORED.fullmatch(name):
            continue
        if int(match[1][:9]) >= config.n_layers:
            raise EdgeError(
                f"{path}: the tensor {name} exists, but the metadata says that there are only "
                f"{config.n_layers} layers; the file is damaged or not supported."
            )
        if match[2] not in required and match[2] not in optional:
            raise EdgeError(
                f"{path}: the tensor {name} is not part of the architecture {config.architecture} as edgellm "
                "computes it, so the file is of an unsupported variant."
            )


def _check_numbers(path: Path, c: ModelConfig) -> None:
    if c.n_heads % c.n_kv_heads:
        raise EdgeError(
            f"{path}: {c.n_heads} attention heads cannot share {c.n_kv_heads} key-value heads evenly."
        )
    if c.rope.dims > c.head_dim or c.rope.dims % 2:
        raise EdgeError(f"{path}: RoPE over {c.rope.dims} dimensions does not fit heads of {c.head_dim}.")
    if c.sliding_layers is not None and len(c.sliding_layers) != c.n_layers:
        raise EdgeError(f"{path}: {len(c.sliding_layers)} sliding-window flags for {c.n_layers} layers.")


Shapes = dict[str, tuple[int, ...]]


def _outer_shapes(c: ModelConfig) -> tuple[Shapes, Shapes]:
    """Required and optional tensors outside of the blocks."""
    hidden, vocab = c.hidden_size, c.vocab_size
    embedding = c.extra.get("word_embed_proj_dim", hidden)
    required: Shapes = {"token_embd.weight": (vocab, embedding)}
    optional: Shapes = {"output.weight": (vocab, embedding), "output.bias": (vocab,)}
    if c.architecture != "opt":
        required["output_norm.weight"] = (hidden,)
        return required, optional
    required["position_embd.weight"] = (c.context_length + c.extra["position_offset"], hidden)
    optional |= {"output_norm.weight": (hidden,), "output_norm.bias": (hidden,)}
    if embedding != hidden:
        required |= {"project_in.weight": (hidden, embedding), "project_out.weight": (embedding, hidden)}
    return required, optional


def _block_shapes(c: ModelConfig, fused: bool) -> tuple[Shapes, Shapes]:
    """Required and optional tensors of one block, without "blk.N."."""
    hidden, ffn, head = c.hidden_size, c.ffn_size, c.head_dim
    q, kv = c.n_heads * head, c.n_kv_heads * head
    linears: Shapes = {"attn_output": (hidden, q), "ffn_down": (hidden, ffn), "ffn_up": (ffn, hidden)}
    if fused:
        linears["attn_qkv"] = (q + 2 * kv, hidden)
    else:
        linears |= {"attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden)}
    if c.architecture == "phi3":
        linears["ffn_up"] = (2 * ffn, hidden)
    elif c.architecture != "opt":
        linears["ffn_gate"] = (ffn, hidden)
    norms: Shapes = {"attn_norm": (hidden,), "ffn_norm": (hidden,)}
    if c.architecture in ("gemma2", "gemma3"):
        norms |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
    if c.architecture in ("qwen3", "gemma3"):
        norms |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
    if c.architecture == "bitnet":
        norms |= {"attn_sub_norm": (q,), "ffn_sub_norm": (ffn,)}
    required = {f"{name}.weight": shape for name, shape in linears.items()}
    optional = {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    if c.architecture == "opt":  # layer norms: with a bias, or without parameters at all
        optional |= {f"{name}.{part}": shape for name, shape in norms.items() for part in ("weight", "bias")}
    else:
        required |= {f"{name}.weight": shape for name, shape in norms.items()}
    optional |= {f"{name}.scale": (1,) for name in linears}  # factor of a ternary matrix
    return required, optional


def _is_fused(tensors: Mapping[str, Tensor]) -> bool:
    return "blk.0.attn_qkv.weight" in tensors


def _compare(
    path: Path, c: ModelConfig, tensors: Mapping[str, Tensor], prefix: str, required: Shapes, optional: Shapes
) -> None:
    for name in required:
        if prefix + name not in tensors:
            raise EdgeError(
                f"{path}: the tensor {prefix + name} is missing, which the architecture {c.architecture} "
                "needs; the file is incomplete or of another kind."
            )
    for name, shape in (required | optional).items():
        tensor = tensors.get(prefix + name)
        if tensor is not None and tensor.shape != shape:
            raise EdgeError(
                f"{path}: the tensor {prefix + name} has the shape {tensor.shape}, which disagrees with the "
                f"metadata: it should be {shape}."
            )
