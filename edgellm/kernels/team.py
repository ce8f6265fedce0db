"""A team of threads that run one compiled kernel together.

The threads wait in compiled code. One call hands over the work and returns when all have done it, so an
interrupt of Python can come before or after it, never in between.
"""

from __future__ import annotations

import ctypes
import threading
import weakref

import numpy as np

from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import Control, TeamCall, record
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target

KERNELS = ("team_loop/part=work", "team_loop/part=run")  # that a Team needs
_KERNEL = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4
)  # ctypes releases the interpreter lock for the call
_RESULT = ctypes.cast(ctypes.create_string_buffer(16), ctypes.c_void_p)  # Numba stores its None here


def call_kernel(kernel: int, args: int, state: int = 0, thread: int = 0, threads: int = 1) -> None:
    """Call a kernel by its address on the caller's thread, by default as a team of one."""
    _KERNEL(kernel)(_RESULT, None, args, state, thread, threads)


class Team:
    """`threads` threads: the caller's, and threads - 1 of its own that sleep while there is nothing to run.

    Only one thread may call run() at a time. Close the team, or let it be collected, to end its threads.
    """

    def __init__(self, threads: int, target: Target):
        self.threads = threads
        kernels = load_kernels(KERNELS, target)
        self._run = kernels["team_loop/part=run"]
        self._control = aligned(len(Control), np.int64)
        self._call = aligned(len(TeamCall), np.int64)
        work = (kernels["team_loop/part=work"], address(self._control), 0)
        self._workers = [
            threading.Thread(target=call_kernel, args=(*work, i, threads), name=f"edgellm-{i}", daemon=True)
            for i in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()
        # Also at the interpreter's exit: a thread must not outlive the memory that it waits on.
        self._finalizer = weakref.finalize(
            self, _end, self._run, self._control, self._call, self._workers, threads
        )

    def run(self, kernel: int, args: int, state: int) -> None:
        """Call the kernel on every thread at once and return when all have finished."""
        self._call[:] = record(TeamCall, KERNEL=kernel, ARGS=args, STATE=state)
        call_kernel(self._run, address(self._control), address(self._call), 0, self.threads)

    def close(self) -> None:
        """End the threads; the team cannot run anything afterwards."""
        self._finalizer()


def _end(
    run: int, control: np.ndarray, call: np.ndarray, workers: list[threading.Thread], threads: int
) -> None:
    call[TeamCall.KERNEL] = 0
    call_kernel(run, address(control), address(call), 0, threads)
    for worker in workers:
        worker.join()
