"""The native executor: a team of threads that runs compiled kernels over packed weights."""

from edgellm.executors.native.executor import NativeExecutor

__all__ = ["NativeExecutor"]
