"""Run language models on the machine in front of you.

    import edgellm

    model = edgellm.load("SmolLM2-135M-Instruct")
    print(model.generate("The capital of France is", max_tokens=16).text)

Importing the package costs next to nothing: what is heavy is imported by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgellm.errors import CheckFailed, EdgeError

if TYPE_CHECKING:
    from edgellm.model import Model, load

__version__ = "0.1.0"
__all__ = ["CheckFailed", "EdgeError", "Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Model", "load"):
        from edgellm import model

        return getattr(model, name)
    raise AttributeError(f"module 'edgellm' has no attribute {name!r}")
