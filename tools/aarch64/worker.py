"""Compiles kernels for the emulated tests, on this machine itself: twenty times as fast as under emulation.

Reads lines of JSON, [kernel, [level, triple, cpu, features]]; answers each with eight bytes of length, little
endian, and the object code.
"""

from __future__ import annotations

import json
import sys

from edgellm.kernels.compile import compile_kernel
from edgellm.kernels.simd.level import Target


def main() -> None:
    for line in sys.stdin:
        kernel, target = json.loads(line)
        code = compile_kernel(kernel, Target(*target))
        sys.stdout.buffer.write(len(code).to_bytes(8, "little") + code)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
