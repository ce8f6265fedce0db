from __future__ import annotations

from tools.peers.build import cmake_flags, cpu_flags

ZEN4 = """processor\t: 0
flags\t\t: fpu sse4_2 avx avx2 fma f16c bmi2 avx512f avx512dq avx512cd avx512bw \
avx512vl avx512_bf16 avx512vbmi avx512_vnni
processor\t: 1
flags\t\t: fpu
"""
HASWELL = "flags\t\t: fpu sse4_2 avx avx2 fma f16c bmi2\n"
CORTEX = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


def test_the_first_processor_decides():
    assert "avx512_vnni" in cpu_flags(ZEN4)
    assert cpu_flags(CORTEX) == set()


def test_avx512_is_built_only_where_the_host_has_it():
    with_it = cmake_flags("x86_64", cpu_flags(ZEN4))
    without = cmake_flags("x86_64", cpu_flags(HASWELL))
    for name in ("GGML_AVX512", "GGML_AVX512_VNNI", "GGML_AVX512_VBMI", "GGML_AVX512_BF16"):
        assert f"-D{name}=ON" in with_it
        assert f"-D{name}=OFF" in without
    assert "-DGGML_AVX2=ON" in without
    assert "-DGGML_NATIVE=OFF" in without


def test_other_machines_name_no_x86_instruction_set():
    assert not [flag for flag in cmake_flags("aarch64", cpu_flags(CORTEX)) if "GGML_" in flag]
