"""Architectures: one file per model type, each with `build(checkpoint, context) -> Program`."""

from __future__ import annotations

from importlib import import_module

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.config import SUPPORTED_ARCHITECTURES
from edgellm.models.rope import trained_context
from edgellm.program.program import Program
from edgellm.program.validate import validate


def build_program(checkpoint: Checkpoint, context: int | None = None) -> Program:
    """The validated Program of a checkpoint, for sessions of up to `context` tokens.

    `context` matters where positions are encoded differently for long texts (LongRoPE); by default it
    is the context that the model was trained on. Program.context_length is the most that the Program
    is right for. Raises EdgeError for an unknown architecture, a missing tensor and
    a shape that disagrees with the metadata.
    """
    config = checkpoint.config
    if config.architecture not in SUPPORTED_ARCHITECTURES:
        raise EdgeError(
            f"{checkpoint.path}: the architecture {config.architecture!r} is not supported; "
            f"known are {', '.join(SUPPORTED_ARCHITECTURES)}."
        )
    trained = trained_context(checkpoint)
    if trained is None or (context is not None and context > trained):
        trained = config.context_length
    model = import_module(f"edgellm.models.{config.architecture}")
    program: Program = model.build(checkpoint, trained)
    validate(program, checkpoint)
    return program
