"""Where edgellm keeps what it can fetch or build again: models, packed weights, compiled kernels,
measured devices.

All of it lives under one root, the platform's cache folder (`~/.cache/edgellm` on Linux,
`~/Library/Caches/edgellm` on macOS, `%LOCALAPPDATA%\\edgellm\\Cache` on Windows): nothing there is the user's
own work, and every file can be pulled or compiled again. EDGELLM_CACHE names another root.
"""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT_VARIABLE = "EDGELLM_CACHE"


def cache_root() -> Path:
    """Absolute path of the root of every cache; not created here. Reads EDGELLM_CACHE on each call."""
    override = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if override:
        return Path(os.path.abspath(os.path.expanduser(override)))
    from platformdirs import user_cache_path  # late: not needed when the variable is set

    return user_cache_path("edgellm", appauthor=False)


def models_dir() -> Path:
    """Folder of the pulled models, one sub-folder per model; not created here."""
    return cache_root() / "models"
