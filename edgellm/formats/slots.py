"""Neurons in slots: what `ffn.bin` of a bundle holds, and how a neuron's weights become bytes.

A neuron of an FFN is a row of up, a column of down and, where there is one, a row of gate. A slot holds a few
neurons, is read as a whole and begins at a multiple of the file system's alignment:

    section 0   of each neuron, one behind the other: up, down   (what a gate in memory asks for)
    section 1   of each neuron: gate                             (only where it is predicted who fires)

each padded with zeros to the alignment, and only with the roles that the bundle has. Layer l begins at
`layer_offset(l)`, a multiple of 2 MiB, behind a superblock of 4 KiB.

A vector of k weights is kept in one of these codecs:

    q4_0, q8_0  the scales and codes of ggml's types: first the float16 scales of all blocks of 32, then of
                every two blocks 64 codes. q8_0: a byte each, value + 128. q4_0: byte m of 32 holds
                value + 8 of weight m in its low half and of weight 32 + m in its high half
    t2          trits t: byte m of every 16 holds the codes t + 1 of weights m, 16 + m, 32 + m and 48 + m of
                64 in its bits 0, 2, 4 and 6; behind a row of up or gate its float32 scale. The scales of
                down, one for each of its rows, are not in the slots.

k is a multiple of 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgellm.formats.types import TENSOR_TYPES

Role = Literal["up", "down", "gate"]
Codec = Literal["q4_0", "q8_0", "t2"]
SECTIONS: tuple[tuple[Role, ...], ...] = (("up", "down"), ("gate",))
CODECS = ("q4_0", "q8_0", "t2")
SUPERBLOCK = 4096
LAYER_ALIGNMENT = 2 << 20
MOST_IN_A_SLOT = 16
UNIT = 64  # weights that lie together
_PADDING = 1 / 16  # share of a slot that may be padding before more neurons are put into one


def vector_bytes(role: Role, codec: Codec, k: int) -> int:
    """Of a vector of k weights, a multiple of UNIT."""
    if codec == "t2":
        return k // UNIT * 16 + (0 if role == "down" else 4)
    block = TENSOR_TYPES[codec.upper()]
    return k // block.block * block.nbytes


def section_of(role: Role) -> int:
    return next(i for i, roles in enumerate(SECTIONS) if role in roles)


def _align(n: int, to: int) -> int:
    return -(-n // to) * to


@dataclass(frozen=True)
class SlotLayout:
    """Where the neurons of a bundle lie in its ffn.bin.

    codecs: of the roles that are there; alignment: bytes, a power of two; per_slot: neurons of a slot, the
    last one of a layer may hold fewer.
    """

    layers: int
    neurons: int
    hidden: int
    codecs: Mapping[Role, Codec]
    alignment: int
    per_slot: int

    @classmethod
    def choose(
        cls, layers: int, neurons: int, hidden: int, codecs: Mapping[Role, Codec], alignment: int
    ) -> SlotLayout:
        """As few neurons to a slot as keep its padding small."""
        found = [
            cls(layers, neurons, hidden, dict(codecs), alignment, n) for n in range(1, MOST_IN_A_SLOT + 1)
        ]
        good = [one for one in found if one.padding_share <= _PADDING]
        return good[0] if good else min(found, key=lambda one: one.padding_share)

    def roles(self, section: int) -> tuple[Role, ...]:
        return tuple(role for role in SECTIONS[section] if role in self.codecs)

    def nbytes(self, role: Role) -> int:
        """Of one neuron's vector."""
        return vector_bytes(role, self.codecs[role], self.hidden)

    def neuron_bytes(self, section: int) -> int:
        """Of one neuron."""
        return sum(self.nbytes(role) for role in self.roles(section))

    def section_bytes(self, section: int) -> int:
        """Padding included; 0 where the bundle has none of its roles."""
        return _align(self.per_slot * self.neuron_bytes(section), self.alignment)

    def section_offset(self, section: int) -> int:
        """In a slot."""
        return sum(self.section_bytes(before) for before in range(section))

    def offset(self, role: Role) -> int:
        """Of the first neuron's vector in a slot; the others follow at steps of neuron_bytes."""
        section = section_of(role)
        roles = self.roles(section)
        return self.section_offset(section) + sum(self.nbytes(r) for r in roles[: roles.index(role)])

    @property
    def stride(self) -> int:
        """Bytes of a slot."""
        return sum(self.section_bytes(section) for section in range(len(SECTIONS)))

    def read_bytes(self, gates: bool) -> int:
        """Of a slot that is read: all of it, or without gates section 0."""
        return self.stride if gates else self.section_bytes(0)

    @property
    def padding_share(self) -> float:
        used = self.per_slot * sum(self.neuron_bytes(section) for section in range(len(SECTIONS)))
        return 1 - used / self.stride

    @property
    def slots(self) -> int:
        """Of a layer."""
        return -(-self.neurons // self.per_slot)

    @property
    def layer_bytes(self) -> int:
        return self.slots * self.stride

    def layer_offset(self, layer: int) -> int:
        """In the file."""
        step = _align(self.layer_bytes, LAYER_ALIGNMENT)
        return LAYER_ALIGNMENT + layer * step

    @property
    def file_bytes(self) -> int:
        return self.layer_offset(self.layers - 1) + self.layer_bytes

    def view(self, area: np.ndarray, role: Role) -> np.ndarray:
        """The vectors of a role in whole slots, uint8 (slots, stride): a view (slots, per_slot, bytes)."""
        section = section_of(role)
        begin, each = self.section_offset(section), self.neuron_bytes(section)
        inside = area[:, begin : begin + self.per_slot * each].reshape(len(area), self.per_slot, each)
        at = self.offset(role) - begin
        return inside[:, :, at : at + self.nbytes(role)]


def checksums(sections: np.ndarray) -> np.ndarray:
    """uint64 (n,) of uint8 (n, bytes), bytes a multiple of 8: of the little-endian words w the sum of
    (2 i + 1) w_i modulo 2^64. The factors are odd, so one changed word always shows."""
    words = np.ascontiguousarray(sections).view("<u8").astype(np.uint64, copy=False)
    factors = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64)
    return np.asarray((words * factors).sum(axis=1, dtype=np.uint64))


def pack_trits(codes: np.ndarray) -> np.ndarray:
    """uint8 codes 0, 1, 2 (n, k) -> t2 bytes (n, k / 4)."""
    n = len(codes)
    quarters = codes.reshape(n, -1, 4, 16)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    packed: np.ndarray = np.bitwise_or.reduce(quarters << shifts, axis=2)
    return packed.reshape(n, -1)


def unpack_trits(data: np.ndarray) -> np.ndarray:
    """The inverse of pack_trits: uint8 codes (n, k)."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    quarters = (data.reshape(len(data), -1, 1, 16) >> shifts) & 3
    return np.ascontiguousarray(quarters.reshape(len(data), -1))


def arrange(blocks: np.ndarray, codec: Codec) -> np.ndarray:
    """ggml's blocks of Q4_0 or Q8_0, uint8 (n, bytes), as the vectors of q4_0 or q8_0: the same size."""
    n, each = len(blocks), TENSOR_TYPES[codec.upper()].nbytes
    found = np.empty_like(blocks)
    split = blocks.reshape(n, -1, each)
    heads = 2 * split.shape[1]
    found[:, :heads] = split[:, :, :2].reshape(n, -1)
    codes, out = split[:, :, 2:], found[:, heads:]
    if codec == "q8_0":
        np.bitwise_xor(codes, 0x80, out=out.reshape(codes.shape))
        return found
    pairs, out = codes.reshape(n, -1, 2, 16), out.reshape(n, -1, 2, 16)  # ggml: low half m, high half 16 + m
    first, second = pairs[:, :, 0], pairs[:, :, 1]
    out[:, :, 0] = (first & 15) | (second & 15) << 4
    out[:, :, 1] = (first >> 4) | (second & 0xF0)
    return found


def blocks_of(vectors: np.ndarray, codec: Codec) -> np.ndarray:
    """The inverse of arrange."""
    n, each = len(vectors), TENSOR_TYPES[codec.upper()].nbytes
    count = vectors.shape[1] // each
    found = np.empty_like(vectors).reshape(n, count, each)
    found[:, :, :2] = vectors[:, : 2 * count].reshape(n, count, 2)
    codes = np.ascontiguousarray(vectors[:, 2 * count :])
    if codec == "q8_0":
        found[:, :, 2:] = codes.reshape(n, count, 32) ^ 0x80
        return found.reshape(n, -1)
    halves = codes.reshape(n, -1, 2, 16)
    pairs = np.empty((n, count // 2, 2, 16), np.uint8)
    pairs[:, :, 0] = (halves[:, :, 0] & 15) | (halves[:, :, 1] & 15) << 4
    pairs[:, :, 1] = (halves[:, :, 0] >> 4) | (halves[:, :, 1] & 0xF0)
    found[:, :, 2:] = pairs.reshape(n, count, 16)
    return found.reshape(n, -1)


def decode(data: np.ndarray, role: Role, codec: Codec) -> np.ndarray:
    """float32 (n, k) of n vectors' bytes; of a ternary down the trits alone."""
    data = np.ascontiguousarray(data)
    if codec == "t2":
        body = data if role == "down" else data[:, :-4]
        trits = unpack_trits(np.ascontiguousarray(body)).astype(np.float32) - 1
        return trits if role == "down" else trits * np.ascontiguousarray(data[:, -4:]).view("<f4")
    from edgellm.formats.types import dequantize

    return dequantize(blocks_of(data, codec), codec.upper())
