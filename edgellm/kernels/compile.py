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
from typing import Any

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
    function, fastmath = _function_of(kernel, target)
    return compile_function(function, symbol_of(kernel), target, fastmath)


def kernel_assembly(kernel: str, target: Target) -> str:
    """The same code as text, to look at."""
    function, fastmath = _function_of(kernel, target)
    return function_assembly(function, symbol_of(kernel), target, fastmath)


def _function_of(kernel: str, target: Target) -> tuple[Callable[..., None], bool | set[str]]:
    """The kernel's Python function, and the fast-math flags that its module asks for: Numba would put its
    own on hand-written IR too."""
    module_name, _, params = kernel.partition("/")
    module = importlib.import_module(f"edgellm.kernels.{module_name}")
    values = dict(p.split("=") for p in params.split(",")) if params else {}
    function = module.build(
        target, **{k: int(v) if v.lstrip("-").isdigit() else v for k, v in values.items()}
    )
    return function, getattr(module, "FASTMATH", False)


def compile_function(
    function: Callable[..., None], symbol: str, target: Target, fastmath: bool | set[str] = False
) -> bytes:
    """Object code of a function of four int64 that Numba can compile, under a C symbol, for any target."""
    machine, module = _lower(function, symbol, target, fastmath)
    return machine.emit_object(module)


def function_assembly(
    function: Callable[..., None], symbol: str, target: Target, fastmath: bool | set[str] = False
) -> str:
    """The same code as text, to look at."""
    machine, module = _lower(function, symbol, target, fastmath)
    return machine.emit_assembly(module)


def _lower(
    function: Callable[..., None], symbol: str, target: Target, fastmath: bool | set[str]
) -> tuple[llvm.TargetMachine, llvm.ModuleRef]:
    """The target's machine and the optimised module to emit with it."""
    machine = _machine(target)
    module = llvm.parse_assembly(_optimised_ir(function, symbol, machine, fastmath))
    module.triple, module.data_layout = target.triple, str(machine.target_data)
    for helper in module.functions:
        if helper.name != symbol and not helper.is_declaration:
            helper.linkage = llvm.Linkage.internal  # helpers of several kernels must not collide
    return machine, module


def _optimised_ir(
    function: Callable[..., None], symbol: str, machine: llvm.TargetMachine, fastmath: bool | set[str]
) -> str:
    """Numba's LLVM IR of a kernel, optimised for `machine`.

    Numba is kept from going on to machine code of this host, which intrinsics of another architecture would
    not survive. It gives the module the host's triple and data layout all the same, which for the types that
    kernels use are those of every 64-bit target.
    """
    os.environ.setdefault("NUMBA_DISABLE_PERFORMANCE_WARNINGS", "1")
    from numba import types
    from numba.core.compiler import Flags, compile_extra
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    flags = Flags()
    options = {"nopython": True, "_nrt": False, "error_model": "numpy", "fastmath": fastmath}
    cpu_target.options.parse_as_flags(
        flags, {**options, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    )
    signature = (types.int64,) * 4
    with global_compiler_lock:
        host = cpu_target.target_context
        context = host.subtarget(_internal_codegen=_code_generator(machine), aot_mode=True)
        # The functions of numba.njit that the kernel calls are compiled in the context that they find here.
        vars(cpu_target)["_toplevel_target_context"] = context
        try:
            typing = cpu_target.typing_context
            compiled = compile_extra(typing, context, function, signature, types.void, flags, {})
        finally:
            vars(cpu_target)["_toplevel_target_context"] = host
    return compiled.library.get_llvm_str().replace(compiled.fndesc.mangled_name, symbol)


def _code_generator(machine: llvm.TargetMachine) -> Any:
    """Numba's ahead-of-time code generator, which stops at optimised LLVM IR, with the costs of `machine`."""
    from numba.core.codegen import AOTCodeLibrary, AOTCPUCodegen

    class Library(AOTCodeLibrary):
        def get_pointer_to_function(self, name: str) -> int:
            self._ensure_finalized()
            return 0  # there is none, and nobody will call it

    class Generator(AOTCPUCodegen):
        _library_class = Library

        def set_env(self, name: str, env: Any) -> None:
            """Where a function would find Python's objects; kernels use none."""

    generator = Generator("edgellm")
    generator._tm = machine
    return generator


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


def kernel_folder(target: Target) -> Path:
    """Where the cache keeps a target's kernels, and what was measured of them; may not exist yet."""
    return cache_root() / "kernels" / _fingerprint(target)


def _load(wanted: list[str], target: Target, progress: Callable[[int, int], None] | None) -> None:
    folder = kernel_folder(target)
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
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features
    )
    # One piece of memory for all sections: between pieces there may be gigabytes of weights, and code reaches
    # its constants within 2 GiB only.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)
    for code in objects:
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return engine


def _machine(target: Target) -> llvm.TargetMachine:
    """What emits code for a target, of any architecture, that may be loaded at any address."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="default"
    )


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
