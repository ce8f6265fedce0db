"""What opening a model costs before it opens: nothing but NumPy is imported with the package."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["checkpoint", "gguf", "hf", "types", "config", "safetensors"])
def test_only_numpy_is_imported(module: str) -> None:
    code = (
        f"import sys, edgellm.formats.{module} as m; name = m.__name__; "
        "print([x for x in ('gguf', 'safetensors', 'tokenizers', 'jinja2', 'numba') if x in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
