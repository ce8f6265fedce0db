"""What an instruction moves and computes: the numbers that a measured time is compared with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate

from edgellm.kernels.kv_layout import CHUNK, KvBlock
from edgellm.program import ops
from edgellm.program.program import Program


@dataclass(frozen=True)
class Cost:
    """Of one instruction. A row is a token; macs are multiply-adds."""

    label: str  # kind of op, the same in every layer: "attn_q", "ffn_down", "attend", "norm"
    weight_bytes: int = 0  # read in a step, whatever its rows
    int8_macs: int = 0  # for each row
    float_macs: int = 0  # for each row
    kv_bytes: int = 0  # for each cached position
    kv_macs: int = 0  # for each row and each position that it sees, in float32
    window: int = 0  # positions that a row sees at most; 0: all

    def kv_positions(self, position: int, rows: int) -> tuple[int, int]:
        """(read, seen) by `rows` rows of a sequence, the first at `position`: cached positions that they
        need together, and the sum of those that each row sees, itself included."""
        seen = [min(p + 1, self.window or p + 1) for p in range(position, position + rows)]
        return min(position + rows, (self.window or position + 1) + rows - 1), sum(seen)


def kernel_label(kernel: str) -> str:
    """The label of an instruction that is known by its kernel: "elementwise/function=add" -> "add"."""
    name, _, parameters = kernel.partition("/")
    if name == "quantize" and "norm=1" in parameters:
        return "norm+quantize"
    first = parameters.partition(",")[0]
    return first.partition("=")[2] if name in ("elementwise", "attention") else name


def weight_label(weight: ops.Weight) -> str:
    """ "blk.3.ffn_up.weight" -> "ffn_up". An embedding table that is multiplied with is the output matrix."""
    name = re.sub(r"^blk\.\d+\.", "", weight.name).removesuffix(".weight")
    return "output" if name == "token_embd" else name


def linear_cost(weight: ops.Weight, nbytes: int, macs: int, planes: int) -> Cost:
    """Of y = W x. nbytes: of W as it lies in memory; planes: of int8 activations, 0 for float32 ones."""
    if planes:
        return Cost(weight_label(weight), weight_bytes=nbytes, int8_macs=planes * macs)
    return Cost(weight_label(weight), weight_bytes=nbytes, float_macs=macs)


def attend_cost(op: ops.Attend, kv: str) -> Cost:
    """Of attention over a KV cache of kind `kv`."""
    each = KvBlock.of(kv, op.head_dim).nbytes // CHUNK
    return Cost(
        "attend", kv_bytes=op.kv_heads * each, kv_macs=2 * op.heads * op.head_dim, window=op.window or 0
    )


def kv_bytes_before(program: Program, kv: str) -> list[int]:
    """Bytes of the slots before each slot in a chunk of the KV cache, and last of a whole chunk."""
    each = (slot.kv_heads * KvBlock.of(kv, slot.head_dim).nbytes for slot in program.kv_slots)
    return list(accumulate(each, initial=0))
