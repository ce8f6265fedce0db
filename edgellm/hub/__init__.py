"""Pull models and find them again. `resolve` is loaded when first used: edgellm.hub.paths must stay cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.hub.pull import resolve

__all__ = ["resolve"]


def __getattr__(name: str) -> Any:
    if name == "resolve":
        from edgellm.hub.pull import resolve

        return resolve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
