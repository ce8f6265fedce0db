"""Compiles kernels to object code, caches it on disk, and loads it, without Numba on later starts.

A kernel is a Python function of (args, state, thread, threads), all 64-bit integers, that Numba
compiles to code without references to Python or to Numba's runtime. What is kept is the object code,
so a later start needs only llvmlite, and the same route compiles ahead of time for another target.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

from edgellm.hub.paths import cache_root
from edgellm.kernels.simd.level import Target

_lock = threading.Lock()
_loaded: dict[tuple[Target, str], int] = {}
_engines: list[llvm.ExecutionEngine] = []  # own the loaded code for the life of the process


def symbol_of(kernel: str) -> str:
    """C symbol of a kernel: "linear/bits=4" -> "edgellm_linear_bits_4"."""
    return "edgellm_" + "".join(c if c.isalnum() else "_" for c in kernel)


@cache
def _fingerprint(target: Target) -> str:
    """Changes whenever the object code could: kernel sources, compiler, target."""
    digest = hashlib.sha256(
        repr((target, llvm.llvm_version_info, _version("llvmlite"), _version("numba"))).encode()
    )
    root = Path(__file__).parent
    for source in sorted(root.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:24]


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def compile_kernel(kernel: str, target: Target) -> bytes:
    """Object code of one kernel. Its symbol is `symbol_of(kernel)`, its form is Numba's native one:
    int32 f(void** result, void* unused, int64 args, int64 state, int64 thread, int64 threads)."""
    module_name, _, params = kernel.partition("/")
    module = importlib.import_module(f"edgellm.kernels.{module_name}")
    values = dict(p.split("=") for p in params.split(",")) if params else {}
    function = module.build(
        target, **{k: int(v) if v.lstrip("-").isdigit() else v for k, v in values.items()}
    )
    # Numba would put its fast-math flags on hand-written IR too, so a kernel module has to ask for them.
    return compile_function(function, symbol_of(kernel), target, getattr(module, "FASTMATH", False))


def compile_function(
    function: Callable[..., None], symbol: str, target: Target, fastmath: bool | set[str] = False
) -> bytes:
    """Object code of a function of four int64 that Numba can compile, under a C symbol."""
    os.environ.setdefault("NUMBA_DISABLE_PERFORMANCE_WARNINGS", "1")
    import numba
    from numba import types

    _initialise_llvm()
    options = {"error_model": "numpy", "fastmath": fastmath}
    signature = types.void(types.int64, types.int64, types.int64, types.int64)
    wrap = numba.njit(signature, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)
    (compiled,) = wrap(function).overloads.values()
    text = compiled.library.get_llvm_str().replace(compiled.fndesc.mangled_name, symbol)
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="default"
    )
    parsed = llvm.parse_assembly(text)
    parsed.triple, parsed.data_layout = target.triple, str(machine.target_data)
    for helper in parsed.functions:
        if helper.name != symbol and not helper.is_declaration:
            helper.linkage = llvm.Linkage.internal  # helpers of several kernels must not collide
    return machine.emit_object(parsed)


def load_kernels(
    kernels: Iterable[str], target: Target, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Addresses of the kernels by name, compiled if the cache has none.

    progress(done, total) is called while kernels are compiled, not when all come from the cache.
    """
    with _lock:
        wanted = [k for k in dict.fromkeys(kernels) if (target, k) not in _loaded]
        if wanted:
            _load(wanted, target, progress)
        return {k: _loaded[target, k] for k in kernels}


def _load(wanted: list[str], target: Target, progress: Callable[[int, int], None] | None) -> None:
    folder = cache_root() / "kernels" / _fingerprint(target)
    cached = {k: _read(folder / f"{symbol_of(k)}.o") for k in wanted}
    objects = {k: code for k, code in cached.items() if code is not None}
    missing = [k for k in wanted if k not in objects]
    for done, kernel in enumerate(missing):
        if progress:
            progress(done, len(missing))
        code = compile_kernel(kernel, target)
        _write(folder / f"{symbol_of(kernel)}.o", code)
        objects[kernel] = code
    if progress and missing:
        progress(len(missing), len(missing))
    engine = link(objects.values(), target)
    for kernel in wanted:
        _loaded[target, kernel] = engine.get_function_address(symbol_of(kernel))


def link(objects: Iterable[bytes], target: Target) -> llvm.ExecutionEngine:
    """Load object code into this process, for its life; get_function_address(symbol) finds functions."""
    _initialise_llvm()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    for code in objects:
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return engine


def _initialise_llvm() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _read(path: Path) -> bytes | None:
    """The cached object, or None. A file's first 32 bytes are the checksum of the rest."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def _write(path: Path, code: bytes) -> None:
    """Atomically; an unwritable cache costs the next start a compilation, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as f:
            f.write(hashlib.sha256(code).digest() + code)
        os.replace(name, path)
    except OSError:
        return
