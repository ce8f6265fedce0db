"""A team of threads that run one compiled step together. Python hands over; the kernels do not need it."""

from __future__ import annotations

import ctypes
import threading

_STEP = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4
)  # ctypes releases the interpreter lock for the call
_RESULT = ctypes.cast(ctypes.create_string_buffer(16), ctypes.c_void_p)  # Numba stores its None here


def call_alone(kernel: int, args: int, state: int = 0) -> None:
    """Call a kernel on the caller's thread only, as a team of one."""
    _STEP(kernel)(_RESULT, None, args, state, 0, 1)


class Team:
    """`threads` threads: the caller's and threads - 1 of its own, parked while there is nothing to run."""

    def __init__(self, threads: int):
        self.threads = threads
        self._call: tuple[object, int, int] | None = None
        self._wake = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._done = threading.Semaphore(0)
        self._workers = [
            threading.Thread(target=self._work, args=(i + 1,), name=f"edgellm-{i + 1}", daemon=True)
            for i in range(threads - 1)
        ]
        for worker in self._workers:
            worker.start()

    def run(self, kernel: int, args: int, state: int) -> None:
        """Call the kernel on every thread at once and return when all have finished."""
        step = _STEP(kernel)
        self._call = (step, args, state)
        for wake in self._wake:
            wake.release()
        step(_RESULT, None, args, state, 0, self.threads)
        for _ in self._wake:
            self._done.acquire()

    def close(self) -> None:
        self._call = None
        for wake in self._wake:
            wake.release()
        for worker in self._workers:
            worker.join()
        self._wake, self._workers = [], []

    def _work(self, thread: int) -> None:
        wake = self._wake[thread - 1]
        while True:
            wake.acquire()
            if self._call is None:
                return
            step, args, state = self._call
            step(_RESULT, None, args, state, thread, self.threads)  # type: ignore[operator]
            self._done.release()
