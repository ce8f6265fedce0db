"""Code for another architecture than this host's: every kernel compiles, into the expected instructions."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import struct
from pathlib import Path
from typing import Any

import pytest

import edgellm.kernels
from edgellm.errors import EdgeError
from edgellm.executors.native.packing import FLOAT_KINDS, kernel_form
from edgellm.kernels.codes import CODE_FORMS
from edgellm.kernels.compile import compile_kernel, kernel_assembly
from edgellm.kernels.elementwise import ACTIVATIONS
from edgellm.kernels.kv_layout import KINDS
from edgellm.kernels.neuron_codes import MOST
from edgellm.kernels.simd.dot4 import dot4
from edgellm.kernels.simd.emit import V16I32, V64I8, Emit
from edgellm.kernels.simd.level import LEVELS, Target, target_for

_spec = importlib.util.spec_from_file_location("probe", Path(__file__).with_name("probe.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
probe_assembly = _module.probe_assembly

TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
QUANTIZED = sorted({kernel_form(form.layout(256)) for form in CODE_FORMS.values()})
FLOATS = [f"kind={kind}" for kind in FLOAT_KINDS.values()]
KERNELS = [
    *(f"attention/part=append,kv={kv},dim=64" for kv in KINDS),
    *(f"attention/part=attend,kv={kv},dim=64,group=3" for kv in KINDS),
    "norm", "rope/style=half", "rope/style=interleaved", "select", "step",
    "step/part=profile", "stream", "team_loop/part=run", "team_loop/part=work",
    "multiply/kind=int8", "multiply/kind=float", "quantize/planes=1", "quantize/planes=2",
    "quantize/planes=2,norm=1", "quantize/planes=1,rounding=int8", "round_rows",
    *(f"elementwise/function={name}" for name in ("above", "add", "scale", "softcap", *ACTIVATIONS)),
    *(f"linear_f/{form}" for form in FLOATS),
    *(f"linear_q/{form},planes=2" for form in QUANTIZED), f"linear_q/{QUANTIZED[0]},planes=1",
    f"linear_q/{QUANTIZED[0]},planes=2,gate=silu", "linear_f/kind=f16,gate=gelu_tanh",
    "linear_q/bits=2,asym=0,block=32,scaled=0,planes=1", "linear_base3/planes=1",
    "linear_q/bits=2,asym=0,block=32,scaled=0,planes=1,rounded=1", "linear_base3/planes=1,rounded=1",
    "pack_base3/type=TQ2_0",
    "neuron_fire", "neuron_fire/submits=1", "neuron_check", "neuron_ahead", "neuron_arrive", "neuron_keep",
    *(f"neuron_rows/codec={codec},planes=2" for codec in MOST),
    "neuron_rows/codec=t2,planes=1,rounded=1", "neuron_rows/codec=q8_0,planes=2,activation=silu",
    *(f"neuron_columns/codec={codec}" for codec in MOST), "neuron_columns/codec=t2,rounded=1",
    # The other forms of these have no vector code of their own.
    *(f"embed/{form}" for form in (*FLOATS, f"kind=q,{QUANTIZED[0]}")),
    *(f"pack/type={name}" for name in ("F32", "F16", "Q4_0", "Q4_K")),
]  # fmt: skip
# All that a kernel may need of the C library it is linked with.
CALLS = {"memset", "memcpy", "memmove", "sched_yield", "syscall", "clock_gettime"}
FOUR_BIT = "linear_q/bits=4,asym=1,block=32,planes=2"


def aarch64(level: str) -> Target:
    return target_for(level, TRIPLES["aarch64"])


def instructions(assembly: str) -> list[str]:
    """The mnemonics, in order."""
    return re.findall(r"^\t([a-z][a-z0-9.]*)\b", assembly, re.MULTILINE)


def test_no_kernel_is_forgotten() -> None:
    modules = [m.name for m in pkgutil.iter_modules(edgellm.kernels.__path__)]
    loaded = {name: importlib.import_module(f"edgellm.kernels.{name}") for name in modules if name != "simd"}
    parts = {"attention_append", "attention_decode", "attention_prefill"}  # of the kernel attention
    assert {name for name, module in loaded.items() if hasattr(module, "build")} - parts == {
        kernel.partition("/")[0] for kernel in KERNELS
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_compiles_for_aarch64_and_needs_only_the_c_library(kernel: str) -> None:
    assembly = kernel_assembly(kernel, aarch64("neon"))
    called = set(re.findall(r"^\tbl?\t([A-Za-z_]\w*)$", assembly, re.MULTILINE))
    helpers = set(re.findall(r"^(\w+):", assembly, re.MULTILINE))
    assert called - helpers <= CALLS


@pytest.mark.parametrize("arch", LEVELS)
def test_object_is_of_the_architecture_asked_for(arch: str) -> None:
    code = compile_kernel("step", target_for("generic", TRIPLES[arch]))
    assert code[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", code, 18) == (ELF_MACHINES[arch],)


@pytest.mark.parametrize(
    ("arch", "level", "expected", "forbidden"),
    [
        ("aarch64", "i8mm", {"usdot"}, {"sdot", "smull"}),
        ("aarch64", "dotprod", {"sdot"}, {"usdot", "smull"}),
        ("aarch64", "neon", {"smull", "addp", "sadalp"}, {"sdot", "usdot", "udot", "tbl"}),
        ("aarch64", "generic", {"fmla"}, {"sdot", "usdot", "udot"}),
        ("x86_64", "amx", {"tdpbsud", "tileloadd", "tilestored", "ldtilecfg", "tilerelease"}, {"vpmaddubsw"}),
        ("x86_64", "avx512", {"vpdpbusd"}, {"vpmaddubsw", "tdpbsud", "ldtilecfg"}),
        ("x86_64", "avx2", {"vpmaddubsw"}, {"vpdpbusd"}),
        ("x86_64", "generic", {"mulps"}, {"vpdpbusd", "vpmaddubsw", "vfmadd231ps"}),
    ],
)
def test_level_uses_its_own_instructions_and_no_better_ones(
    arch: str, level: str, expected: set[str], forbidden: set[str]
) -> None:
    found = set(instructions(kernel_assembly(FOUR_BIT, target_for(level, TRIPLES[arch]))))
    assert expected <= found
    assert not forbidden & found


def test_peak_of_tiles_is_nothing_but_products() -> None:
    found = instructions(kernel_assembly("multiply/kind=tiles", target_for("amx", TRIPLES["x86_64"])))
    assert found.count("tdpbsud") % 4 == 0  # turns, perhaps unrolled, of four products
    first, last = found.index("tdpbsud"), len(found) - found[::-1].index("tdpbsud")
    assert not {"tileloadd", "tilestored", "tilezero"} & set(found[first:last])


def test_waiting_thread_tells_the_processor_so() -> None:
    assert "yield" in instructions(kernel_assembly("step", aarch64("neon")))
    x86 = target_for("generic", TRIPLES["x86_64"])
    assert "pause" in instructions(kernel_assembly("step", x86))


@pytest.mark.parametrize(
    ("level", "u_max", "expected"),
    [("i8mm", 255, 4), ("dotprod", 127, 4), ("dotprod", 255, 14), ("neon", 127, 20), ("neon", 255, 33)],
)
def test_dot4_of_repeated_inputs_takes_few_instructions(level: str, u_max: int, expected: int) -> None:
    """Vector arithmetic per 64-byte unit: what five units take more than four."""

    def count(units: int) -> int:
        def emit(e: Emit, u: Any, s: Any, out: Any) -> None:
            acc = e.load(out, V16I32, 64)
            for i in range(units):
                values = e.splat_4xi8(e.offset(s, 4 * i))
                acc = dot4(e, acc, e.load(e.offset(u, 64 * i), V64I8, 64), values, u_max)
            e.store(acc, out, 64)

        assembly = probe_assembly(aarch64(level), emit)
        return len(re.findall(r"^\t(?!ld|st|movi)\w+\tv\d", assembly, re.MULTILINE))

    assert count(5) - count(4) == expected


def test_unknown_level_is_refused() -> None:
    with pytest.raises(
        EdgeError, match=r"no SIMD level avx2 for aarch64; its levels: generic, neon, dotprod"
    ):
        target_for("avx2", TRIPLES["aarch64"])
