"""Where things lie in memory: the state and argument records of a kernel call, packed weights, and
quantised activations. Plain numbers, shared by the kernels and by whoever fills the records."""

from __future__ import annotations

import struct
from collections import namedtuple
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

ROWS = 16  # rows of a weight tile
ACT_BLOCK = 32  # activations that share one scale
GROUP = 8  # tokens that a matmul kernel computes at once; buffers have room for a multiple of it


def slots(name: str, fields: str) -> Any:
    """Names for the int64 slots of a record: slots("State", "TOKENS POSITION").POSITION == 1.

    A named tuple, since Numba takes its fields as constants; len() is the record's size.
    """
    names = fields.split()
    return namedtuple(name, names)(*range(len(names)))


def record(slots: tuple, **values: int | float) -> np.ndarray:
    """An int64 record from named slots; a float is stored with the bits of a float64."""
    data = np.zeros(len(slots), np.int64)
    for name, value in values.items():
        if isinstance(value, float):
            value = struct.unpack("<q", struct.pack("<d", value))[0]
        data[getattr(slots, name)] = value
    return data


ZEROS = 5 * 64  # bytes of zeros that kernels may read: a row of the most tiles that one computes at once

# The record that describes one step: TOKENS rows, which belong to one or several sequences.
#   POSITIONS, IDS  addresses of TOKENS int64: each row's position in its sequence, and its token
#   SEQUENCES       how many Sequence records SEQUENCE_TABLE points at, in the order of their rows
#   SCRATCH         address of attention's scratch memory, SCRATCH_BYTES for each thread
#   COUNTERS        address of attention's counters: two for all threads, 64 bytes each, then 64 bytes for
#                   each KV head of each sequence; all 0 between steps
#   PARTIALS        address of the partial results of attention that threads share
#   ZERO            address of ZEROS zero bytes
#   BARRIER         address of the barrier's two counters, see waiting.make_barrier
#   TAIL            address of the State for the instructions from Step.TAIL on, whose rows are those that
#                   logits are wanted of (none: the instructions are left out)
#   WANTED          in a tail's State, address of TOKENS int64: its rows' numbers before, ascending
State = slots(
    "State",
    "TOKENS POSITIONS IDS SEQUENCES SEQUENCE_TABLE SCRATCH SCRATCH_BYTES COUNTERS PARTIALS ZERO BARRIER "
    "TAIL WANTED",
)
# ROWS rows from FIRST_ROW on, the first of them at POSITION; KV: address of the sequence's KV cache.
Sequence = slots("Sequence", "FIRST_ROW ROWS POSITION KV")

# The argument records of the kernels. X, ACT, INPUT, OUT and the like are addresses, *_STRIDE bytes from one
# token's row to the next; *_PRIVATE: with a lone token, row i is the copy of thread i. Biases may be 0.
# NEXT counts the chunks of tiles that threads have taken, see sharing.next_tiles. LOOSE: 1 to share out half
# of them so, for threads that do not begin at the same time.
LinearQ = slots(
    "LinearQ",
    "WEIGHT TILE_STRIDE TILES BLOCKS "
    "INPUT INPUT_STRIDE INPUT_PRIVATE ACT_LOW ACT_SCALE ACT_FSUM ACT_START "
    "OUT OUT_STRIDE BIAS ACCUMULATE NEXT LOOSE",
)
LinearF = slots(
    "LinearF",
    "WEIGHT TILE_STRIDE TILES INPUTS INPUT INPUT_STRIDE INPUT_PRIVATE OUT OUT_STRIDE BIAS ACCUMULATE NEXT",
)
# NORM: address of the Norm record of the norm, of whole rows, that makes X and that this call does first.
Quantize = slots(
    "Quantize",
    "X X_STRIDE X_PRIVATE ACT ACT_STRIDE BLOCKS LOW SCALE FSUM32 START32 FSUM16 START16 SHIFT NORM",
)
# EPS is a float64. WEIGHT is float32 (WIDTH,), BIAS too or 0.
Norm = slots("Norm", "X X_STRIDE X_PRIVATE OUT OUT_STRIDE OUT_PRIVATE GROUPS WIDTH EPS WEIGHT BIAS LAYER")
# Some neurons of an FFN, wherever they are in memory. LIST: int64 COUNT, then pairs of a neuron's number and
# its address. ACT: rows of float32, a column for each neuron; those that are 0 do not fire. VECTOR: bytes
# from a neuron's address to the vector that is read, of UNITS units. INPUT: rows of an ActLayout.
# WEIGHT_SCALE: bytes from the vector to its float32 scale, where it has a single one. BIAS: float32 for each
# neuron, or 0. FACTOR and THRESHOLD, up to which an activation is 0, are float64. NEXT: a counter, 0 before
# the call.
NeuronRows = slots(
    "NeuronRows",
    "LIST INPUT INPUT_STRIDE INPUT_PRIVATE ACT_LOW ACT_SCALE ACT_FSUM UNITS VECTOR WEIGHT_SCALE "
    "ACT ACT_STRIDE BIAS FACTOR THRESHOLD NEXT",
)
# HIDDEN: as ACT, or with rounded inputs rows of an ActLayout whose scale is at HIDDEN_SCALE. ROW_SCALES:
# float32 for each row of OUT, for codecs without scales. NEXT: as of NeuronRows.
NeuronColumns = slots(
    "NeuronColumns",
    "LIST HIDDEN HIDDEN_STRIDE HIDDEN_PRIVATE HIDDEN_SCALE UNITS VECTOR ROW_SCALES "
    "OUT OUT_STRIDE BIAS ACCUMULATE FACTOR NEXT",
)
COUNTERS = 5  # for NeuronRows.NEXT and NeuronColumns.NEXT, 64 bytes apart
BATCHES, TAG_BITS = 3, 32  # of reads, see NeuronQueue; a tag is the batch, and below it the number of a read
# Neurons FIRST to LAST of a layer, whose activations are ACT, float32 rows; up to THRESHOLD, a float64, they
# do not fire. MASK: a byte for each neuron, to work in. ALL, HERE, ARRIVING: lists as NeuronRows takes them,
# of all that fire, of those whose slots are in memory and of the others; GATE_*: the same with the addresses
# of gates, GATE_OFFSET bytes into a slot and GATE_BYTES apart, where there are any. APPEND: 1 to go on with
# what is there. ALL is kept ascending. NEXT: counters to set to 0, as in NeuronRows.
# A slot has PER_SLOT neurons NEURON_BYTES apart; ROW_OF: int64 (slots,), its row of ROW_BYTES or -1. The
# first OWN rows are in ARENA, the others in LENT. Without a row, if HELD points at this LAYER, COMING, int64
# (slots,), is where it is being read to already; or 0, which means that it is to be read, from LAYER_OFFSET
# in the file on, slots STRIDE bytes apart: to LANDING, one behind the other; what finds no room in its
# LANDING_BYTES, and all if LANDING is 0, to its place in STAGED, which is as the file is. SCORES: float64
# (slots,), which grow by STEP; BAR: what they must exceed to stay; float64. CHECKED: a byte for each slot.
# Results: NEEDED, MISSING: int64, slots of neurons that fire, and those of them that are not in memory;
# HOPEFUL, FRESH: int64, a count, then pairs of a slot and its address: those of the missing ones that may
# stay, and those that are not CHECKED yet. COUNTS: see Counts. The reads are batch 0 of QUEUE, a NeuronQueue,
# with at most GAP bytes between what is wanted; those that found no room in LANDING are not submitted.
# TOTALS: int64, see Totals.
NeuronFire = slots(
    "NeuronFire",
    "FIRST LAST APPEND ACT ACT_STRIDE THRESHOLD MASK ALL HERE ARRIVING GATE_HERE GATE_ARRIVING GATE_OFFSET "
    "GATE_BYTES NEXT PER_SLOT NEURON_BYTES ROW_OF ARENA OWN LENT ROW_BYTES HELD LAYER COMING LANDING "
    "LANDING_BYTES STAGED STRIDE LAYER_OFFSET SCORES STEP BAR CHECKED NEEDED MISSING HOPEFUL FRESH COUNTS "
    "GAP QUEUE TOTALS",
)
# Of a layer so far, int64: slots that are needed, and missing; reads, and those that were submitted; bytes
# that landed; the first read that found no room there, or NO_READ; and the layer.
Counts = slots("Counts", "NEEDED MISSING READS SUBMITTED LANDED UNPLACED LAYER")
NO_READ = 1 << 62
# Slots of neurons FIRST to LAST of LAYER whose guessed activations ACT, one row of float32, are above
# THRESHOLD are read to AREA, as batch KIND of QUEUE, one behind the other; the other fields as of NeuronFire.
# SLOTS: int64, a count, then slots, for which COMING is not 0. HELD: int64, the layer that all this is of.
NeuronAhead = slots(
    "NeuronAhead",
    "FIRST LAST LAYER ACT THRESHOLD PER_SLOT ROW_OF ROW_BYTES STRIDE LAYER_OFFSET GAP AREA AREA_BYTES COMING "
    "SLOTS HELD KIND QUEUE TOTALS",
)
# Batches 0 and AHEAD of QUEUE are waited for. COUNTS as of NeuronFire. STOP: int64, set to 1 if that fails.
NeuronArrive = slots("NeuronArrive", "QUEUE AHEAD COUNTS STOP TOTALS")
# HOPEFUL, ARENA, OWN, LENT as of NeuronFire. NUM_USED: int64, rows in use of CAPACITY; POINTER: int64, the
# slot in each. WEAKEST: int64, a count, how many of them are done with, and the rows to give away, best
# first. HYSTERESIS: float64, times as popular a newcomer must be.
NeuronKeep = slots(
    "NeuronKeep",
    "HOPEFUL WEAKEST SCORES ROW_OF POINTER NUM_USED MASK PER_SLOT NEURONS ROW_BYTES CAPACITY ARENA OWN LENT "
    "HYSTERESIS TOTALS",
)
# FRESH as of NeuronFire: slots whose first BYTES, and MORE_BYTES from MORE on, have the checksums SUMS,
# uint64 (slots, 2). CHECKED: a byte for each slot, set where they do; else WRONG: int64, the LAYER and a
# slot, and STOP: int64, set to 1.
NeuronCheck = slots("NeuronCheck", "FRESH SUMS CHECKED BYTES MORE MORE_BYTES LAYER WRONG STOP")
# The rings of an io_uring for reads of the open file FILE, at most DEPTH at a time. RING: its file
# descriptor; ENTRIES, WRAP (a mask), HEAD and TAIL: of submissions; DONE, DONE_WRAP, DONE_HEAD and DONE_TAIL:
# of completions. READS: int64 (BATCHES, 3), the addresses of the offsets, lengths and places of each batch;
# PENDING: int64 (BATCHES,), those that were submitted and not drained; FAILED: int64, a count, then the tags
# of reads that came short.
NeuronQueue = slots(
    "NeuronQueue",
    "FILE DEPTH RING ENTRIES WRAP HEAD TAIL DONE DONE_WRAP DONE_HEAD DONE_TAIL READS PENDING FAILED",
)
# What kernels count: bytes and requests that were read, slots that were needed, and those of them that were
# not in memory; nanoseconds that they waited for reads, and that moving neurons took.
Totals = slots("Totals", "BYTES READS NEEDED MISSED WAITED BOOKKEEPING")
RoundRows = slots("RoundRows", "X X_STRIDE X_PRIVATE OUT OUT_STRIDE WIDTH")
# out = f(x, y); FACTOR is a float64. Rows are padded to whole vectors of 16.
Elementwise = slots("Elementwise", "X X_STRIDE X_PRIVATE Y Y_STRIDE Y_PRIVATE OUT OUT_STRIDE VECTORS FACTOR")
# WIDTH float32 of a row, a multiple of 16.
Select = slots("Select", "X X_STRIDE X_PRIVATE WIDTH")
# TABLE: float32 (positions, 2, HALF): the cosines, then the sines, of every position.
Rope = slots("Rope", "X X_STRIDE HEADS HEAD_DIM HALF TABLE")
# COUNT: chunks of CHUNK inputs in a row (the scale blocks of a quantised table). FACTOR is a float64.
# POSITIONS: 1 to look up position + SHIFT, 0 for the token id.
Embed = slots(
    "Embed",
    "WEIGHT TILE_STRIDE COUNT CHUNK INPUTS ZERO_SHIFT OUT OUT_STRIDE FACTOR POSITIONS SHIFT",
)
# KV_BEFORE: bytes of the slots before this one in a chunk of the KV cache; KV_STRIDE: bytes of a chunk.
Append = slots("Append", "K V K_STRIDE V_STRIDE KV_HEADS KV_BEFORE KV_STRIDE")
# SCALE and SOFTCAP are float64; WINDOW and SOFTCAP are 0 where there is none.
Attend = slots("Attend", "Q Q_STRIDE OUT OUT_STRIDE KV_HEADS KV_BEFORE KV_STRIDE SCALE WINDOW SOFTCAP")
# SOURCE: N rows of K weights as in the file. SCRATCH: pack_scratch_bytes of zeros for each thread that calls.
# FACTOR, a float64: every weight counts times it (quantised types only).
Pack = slots("Pack", "SOURCE SOURCE_STRIDE N K WEIGHT TILE_STRIDE TILES SCRATCH FACTOR")
# COUNT instructions at TABLE, each six int64: kernel address, its argument record, whether all threads must
# have finished it before the next one, for one token and for several, whether it is left out for several,
# and the address of an int64 that it makes other than 0 to end the step, or 0. Those from number TAIL on run
# with the State at State.TAIL. TIMES: for a step that is profiled, room for (threads, COUNT, 3) int64.
# STOPPED: address of an int64, set to the number of the instruction to go on with when one ends the step.
Step = slots("Step", "COUNT TABLE TAIL TIMES STOPPED")
Instruction = slots("Instruction", "KERNEL ARGS BARRIER_ONE BARRIER_MANY LONE STOPS")

# A team's call, and what its threads wait on: GENERATION and FINISHED count up, each on a cache line.
TeamCall = slots("TeamCall", "KERNEL ARGS STATE")
Control = slots("Control", "GENERATION A B C D E F G FINISHED I J K L M N O CALL")
# NBYTES (a multiple of 256 a thread) at ADDRESS are read; OUT: 64 bytes a thread for the sums.
Stream = slots("Stream", "ADDRESS NBYTES OUT")
# TURNS of the loop over the values at ADDRESS; OUT: 64 bytes a thread for the sums.
Multiply = slots("Multiply", "ADDRESS TURNS OUT")

ROW_SCALES = 4 * ROWS  # bytes at the head of a quantised tile
SCALE_LINE = 64  # bytes of scales in front of the codes of a group


def align(n: int, to: int = 64) -> int:
    return -(-n // to) * to


@dataclass(frozen=True)
class ActLayout:
    """One quantised activation row of k values, in bytes.

    x = scale * (256 * high + low), scale = max |x| / 32512 over blocks of 32: int8 high[k]; int8 low[k];
    float32 scale[k/32]; float32 scale * sum and int32 -(sum << shift) of the integers, of blocks of 32
    and of 16.
    With one plane x = scale * high, scale = max |x| / 127.
    """

    k: int

    @property
    def blocks(self) -> int:
        return -(-self.k // ACT_BLOCK)

    @property
    def low(self) -> int:
        return align(self.blocks * ACT_BLOCK)

    @property
    def scale(self) -> int:
        return 2 * self.low

    @property
    def fsum32(self) -> int:
        return self.scale + 4 * self.blocks

    @property
    def start32(self) -> int:
        return self.fsum32 + 4 * self.blocks

    @property
    def fsum16(self) -> int:
        return self.start32 + 4 * self.blocks

    @property
    def start16(self) -> int:
        return self.fsum16 + 8 * self.blocks

    @property
    def stride(self) -> int:
        return align(self.start16 + 8 * self.blocks)


class Plane(NamedTuple):
    """Bits [shift, shift + bits) of the codes of a strip; its units begin `offset` bytes into the strip."""

    bits: int
    shift: int
    offset: int


@dataclass(frozen=True)
class TileLayout:
    """One tile16x4 of a quantised weight: 16 rows, all k inputs, in one stream of bytes.

    float32 row_scale[16]; then groups, each a line of 64 bytes with scales followed by the codes that they
    belong to. With a minimum a group is one block: float16 scale[16], float16 min[16], codes. Without, it
    is two: float16 scale[16] of either, codes of either; an odd last block has the group to itself.
    The codes of a strip of inputs (a block, or more if a unit needs it) are split into planes of 8, 4, 2 or 1
    bits (5 bits: 4 low ones and 1 high one), the high ones first: in this order they are needed, and a CPU
    reads ahead only what is read in the order of addresses. A unit of 64 bytes of a plane of b bits holds
    32 / b inputs of every row: byte 4 * row + i has those of the inputs i, 4 + i, 8 + i, ... at its bits
    0, b, 2 b, ...
    weight = row_scale * (scale * (code - 2^zero_shift)), with asym row_scale * (scale * code + min).
    Without `scaled` the row_scale is the only one, a group is one block, and there are no lines.
    """

    k: int
    bits: int  # 2, 3, 4, 5, 6 or 8
    asym: bool
    block: int  # inputs that share a scale: 16 or 32
    scaled: bool = True

    @property
    def rows(self) -> int:
        return ROWS

    @property
    def blocks(self) -> int:
        return self.k // self.block

    @property
    def group(self) -> int:
        """Blocks whose scales share a line."""
        return 1 if self.asym or not self.scaled else 2

    @property
    def line(self) -> int:
        """Bytes in front of the codes of a group."""
        return SCALE_LINE if self.scaled else 0

    @property
    def groups(self) -> int:
        return -(-self.blocks // self.group)

    @property
    def strip(self) -> int:
        """Inputs whose planes lie together."""
        return max(self.block, 32 // (self.bits & -self.bits))

    @property
    def strip_bytes(self) -> int:
        return ROWS * self.strip * self.bits // 8

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The lowest bits first."""
        found: list[Plane] = []
        shift, end = 0, self.strip_bytes
        for bits in (8, 4, 2, 1):
            if self.bits - shift >= bits:
                end -= ROWS * self.strip * bits // 8
                found.append(Plane(bits, shift, end))
                shift += bits
        return tuple(found)

    @property
    def group_stride(self) -> int:
        return self.line + ROWS * self.group * self.block * self.bits // 8

    @property
    def stride(self) -> int:
        return ROW_SCALES + self.groups * self.group_stride


TRITS = 5  # of a byte of base 3
MOST_BASE3_INPUTS = 16384  # of a row: five tiles, unpacked to two bits, take 320 KiB of a thread's stack


@dataclass(frozen=True)
class Base3Layout:
    """Five tiles of ternary rows that have a single scale each, in one stream of 1.6 bits a weight.

    float32 row_scale[80]; then for every 4 inputs a unit of 64 bytes: byte 4 * row + i has input i of the
    rows row, 16 + row, .., 64 + row, as the digits d of the sum of (trit + 1) 3^d. weight = row_scale * trit.
    """

    k: int  # a multiple of ACT_BLOCK
    # As of a TileLayout.
    asym: ClassVar[bool] = False
    scaled: ClassVar[bool] = False
    block: ClassVar[int] = ACT_BLOCK

    @property
    def rows(self) -> int:
        return TRITS * ROWS

    @property
    def blocks(self) -> int:
        return self.k // ACT_BLOCK

    @property
    def stride(self) -> int:
        return TRITS * ROW_SCALES + 16 * self.k
