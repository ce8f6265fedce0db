"""What is known of a tensor type without any data: the form that it is packed into."""

from __future__ import annotations

from typing import NamedTuple

from edgellm.kernels.layout import ROWS, TileLayout

FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class CodeForm(NamedTuple):
    """weight = scale * (code - 2^zero_shift), or with `asym` scale * code + minimum."""

    bits: int
    asym: bool
    block: int  # inputs that share a scale
    zero_shift: int = 0
    half_scales: bool = True  # the file has the scales as float16, so float16 keeps them
    elements: int = 32  # of a ggml block
    nbytes: int = 0  # of a ggml block

    def layout(self, k: int, scaled: bool = True) -> TileLayout:
        return TileLayout(k, self.bits, self.asym, self.block, scaled)

    @property
    def span(self) -> int:
        """Inputs that are packed at once: whole ggml blocks, whole groups."""
        return max(self.elements, self.block * self.layout(0).group)


CODE_FORMS: dict[str, CodeForm] = {
    "Q4_0": CodeForm(4, False, 32, zero_shift=3, nbytes=18),
    "Q4_1": CodeForm(4, True, 32, nbytes=20),
    "Q5_0": CodeForm(5, False, 32, zero_shift=4, nbytes=22),
    "Q5_1": CodeForm(5, True, 32, nbytes=24),
    "Q8_0": CodeForm(8, False, 32, zero_shift=7, nbytes=34),
    "Q2_K": CodeForm(2, True, 16, half_scales=False, elements=256, nbytes=84),
    "Q3_K": CodeForm(3, False, 16, zero_shift=2, half_scales=False, elements=256, nbytes=110),
    "Q4_K": CodeForm(4, True, 32, half_scales=False, elements=256, nbytes=144),
    "Q5_K": CodeForm(5, True, 32, half_scales=False, elements=256, nbytes=176),
    "Q6_K": CodeForm(6, False, 16, zero_shift=5, half_scales=False, elements=256, nbytes=210),
    "IQ4_NL": CodeForm(8, False, 32, zero_shift=7, nbytes=18),
    "IQ4_XS": CodeForm(8, False, 32, zero_shift=7, half_scales=False, elements=256, nbytes=136),
    "TQ1_0": CodeForm(2, False, 32, elements=256, nbytes=54),
    "TQ2_0": CodeForm(2, False, 32, elements=256, nbytes=66),
}


def pack_scratch_bytes(type_name: str, k: int) -> int:
    """Zeroed scratch that the kernel pack needs for rows of k inputs: codes of a span, scales of a tile."""
    if type_name in FLOAT_BYTES:
        return 0
    form = CODE_FORMS[type_name]
    layout = form.layout(k)
    return ROWS * form.span + 4 * ROWS * (2 * layout.groups * layout.group + 1)
