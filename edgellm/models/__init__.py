"""Architectures: one file per model type, each with `build(checkpoint, context) -> Program`."""

from __future__ import annotations

from importlib import import_module

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.config import ModelConfig
from edgellm.models.rope import trained_context
from edgellm.program.program import Program
from edgellm.program.validate import validate

ARCHITECTURES = ("llama",)

_LARGEST_HEAD = 4096  # dimensions; bounds what is computed from a header before a tensor vouches for it


def build_program(checkpoint: Checkpoint, context: int | None = None) -> Program:
    """The validated Program of a checkpoint, for sessions of up to `context` tokens.

    `context` matters where positions are encoded differently for long texts (LongRoPE);
    by default it is the context that the model was trained on. Program.context_length is the most
    that the Program is right for. Raises EdgeError for an unknown architecture, a missing tensor and
    a shape that disagrees with the metadata.
    """
    config = checkpoint.config
    if config.architecture not in ARCHITECTURES:
        raise EdgeError(
            f"{checkpoint.path}: the architecture {config.architecture!r} is not supported; "
            f"known are {', '.join(ARCHITECTURES)}."
        )
    problem = _implausible(config)
    if problem:
        raise EdgeError(f"{checkpoint.path}: the metadata is damaged or not supported: {problem}.")
    trained = trained_context(checkpoint)
    if trained is None or (context is not None and context > trained):
        trained = config.context_length
    model = import_module(f"edgellm.models.{config.architecture}")
    program: Program = model.build(checkpoint, trained)
    validate(program, checkpoint)
    return program


def _implausible(config: ModelConfig) -> str | None:
    """What cannot be right about the numbers of the header, as half a sentence."""
    sizes = {
        "context length": config.context_length,
        "vocabulary": config.vocab_size,
        "hidden size": config.hidden_size,
        "number of blocks": config.n_layers,
        "number of heads": config.n_heads,
        "number of key-value heads": config.n_kv_heads,
        "head dimension": config.head_dim,
        "FFN size": config.ffn_size,
    }
    for name, size in sizes.items():
        if size < 1:
            return f"the {name} is {size}"
    dims = config.rope.dims or config.head_dim
    if config.head_dim > _LARGEST_HEAD or dims % 2 or not 0 < dims <= config.head_dim:
        return f"{dims} rotated dimensions of heads of {config.head_dim}"
    if config.rope.base <= 1 or config.norm_eps < 0:
        return f"the RoPE base is {config.rope.base} and the norm epsilon {config.norm_eps}"
    if config.sliding_layers is not None and len(config.sliding_layers) != config.n_layers:
        return f"{len(config.sliding_layers)} sliding-window flags for {config.n_layers} blocks"
    return None
