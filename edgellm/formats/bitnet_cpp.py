"""GGUF files of bitnet.cpp (microsoft/BitNet), whose ternary types are numbers of its own fork of ggml.

A file does not tell whose numbers it uses: 36, 38 and 39 mean I2_S, TL1 and TL2 there, and other types in
ggml itself. The sizes of the tensors tell them apart. Neither does it tell in which of its layouts I2_S is,
nor the tilings of TL1 and TL2. Those stand in the kernel_config.ini that the model was converted with, which
has to lie beside it. EDGELLM_BITNET_TYPES and EDGELLM_BITNET_CONFIG decide what cannot be known otherwise.

The tensors become TQ2_0 with the scale 1 when they are first used, and their factor a second tensor
("blk.N.attn_q.scale"), as with BitNet checkpoints from Hugging Face. So nothing is rounded.
"""

from __future__ import annotations

import configparser
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgellm.errors import EdgeError
from edgellm.formats.bitnet_layouts import (
    KINDS,
    Tiling,
    code_bytes,
    misfit,
    tensor_bytes,
    tiling_misfit,
    unpack_i2_s,
    unpack_tl1,
    unpack_tl2,
)
from edgellm.formats.checkpoint import FileId, file_ids
from edgellm.formats.tensor import Tensor
from edgellm.formats.ternary import LazyTensor, ternary_pair

TYPES_VARIABLE = "EDGELLM_BITNET_TYPES"
CONFIG_VARIABLE = "EDGELLM_BITNET_CONFIG"
_DEFAULTS = {36: "i2_s-128", 38: "tl1", 39: "tl2"}
# What ggml means by these numbers: name, weights and bytes of a block (the first two only in files of 2024).
OTHERS = {36: ("IQ4_NL_4_4", 32, 18), 38: ("IQ4_NL_8_8", 32, 18), 39: ("MXFP4", 32, 17)}
_LINEAR = re.compile(r"(blk\.\d+\.(?:attn_(?:q|k|v|qkv|output)|ffn_(?:gate|up|down)))\.weight")
_log = logging.getLogger("edgellm")
_MOST_CONFIG = 1 << 20  # bytes of a kernel_config.ini; real ones have some hundred


class Place(NamedTuple):
    """What a file's header says about a tensor: `room` bytes lie between its offset and what comes next."""

    name: str
    shape: tuple[int, ...]
    type: int
    room: int
    last: bool  # what comes next is the end of the file


@dataclass(frozen=True)
class BitnetOptions:
    """What a file of bitnet.cpp leaves open.

    kinds: what type numbers mean, one of KINDS, or "off" where they are ggml's; for the others the sizes of
    the tensors decide, or nothing if `guess` is False. config: the kernel_config.ini; by default the one
    beside the model.
    """

    kinds: Mapping[int, str] = field(default_factory=dict)
    guess: bool = True
    config: Path | None = None

    @classmethod
    def from_environment(cls) -> BitnetOptions:
        """EDGELLM_BITNET_TYPES: "auto", "off", or like "36=i2_s-64,39=off"; EDGELLM_BITNET_CONFIG: a path.

        Raises EdgeError for a value without a meaning.
        """
        wish = os.environ.get(TYPES_VARIABLE) or "auto"
        config = os.environ.get(CONFIG_VARIABLE)
        kinds = {}
        for part in wish.lower().split(",") if wish not in ("auto", "off") else ():
            number, _, kind = part.strip().partition("=")
            kind = "i2_s-128" if kind == "i2_s" else kind
            if not re.fullmatch(r"[0-9]{1,9}", number) or kind not in (*KINDS, "off"):
                raise EdgeError(
                    f"{TYPES_VARIABLE}={wish} has no meaning; set it to auto, to off, or to pairs like "
                    f"36=i2_s-64 with one of {', '.join(KINDS)} and off."
                )
            kinds[int(number)] = kind
        return cls(kinds, wish != "off", Path(config) if config else None)


def bitnet_kinds(
    path: Path, places: Iterable[Place], alignment: int, options: BitnetOptions
) -> dict[int, str]:
    """Which of the file's type numbers are bitnet.cpp's: number -> one of KINDS.

    Raises EdgeError for a number that may be either's, or whose tensors have the sizes of neither.
    """
    found: dict[int, str] = {}
    places = list(places)
    for number in dict.fromkeys(place.type for place in places):
        kind = options.kinds.get(number)
        if kind is not None:
            found |= {number: kind} if kind != "off" else {}
        elif number in _DEFAULTS and options.guess:
            same = [place for place in places if place.type == number]
            # The end of a truncated file says nothing; that it is truncated is found later.
            telling = [place for place in same if not place.last] or same
            if _is_bitnet(path, number, telling, alignment):
                found[number] = _DEFAULTS[number]
    return found


def _is_bitnet(path: Path, number: int, places: list[Place], alignment: int) -> bool:
    kind, (other, block, block_bytes) = _DEFAULTS[number], OTHERS[number]

    def bitnet(shape: tuple[int, ...]) -> int | None:
        return tensor_bytes(kind, *shape) if len(shape) == 2 else None

    def ggml(shape: tuple[int, ...]) -> int | None:
        weights = 1
        for extent in shape:
            weights *= extent  # Python integers: np.prod would wrap around
        return weights // block * block_bytes if shape[-1] % block == 0 else None

    def fit(size: Callable[[tuple[int, ...]], int | None]) -> bool:
        return all(_fits(place, size(place.shape), alignment) for place in places)

    ours, theirs = fit(bitnet), fit(ggml)
    if ours != theirs:
        return ours
    name, word = places[0].name, kind.split("-")[0]
    raise EdgeError(
        f"{path}: the tensor {name} is of type {number}, {word.upper()} in files of bitnet.cpp and {other} "
        f"in others, and its size fits {'both' if ours else 'neither'}; if the file is not damaged, decide "
        f"with {TYPES_VARIABLE}={number}={word} or {number}=off."
    )


def _fits(place: Place, size: int | None, alignment: int) -> bool:
    """Whether a tensor of `size` bytes explains the room; the end of a file may lack its padding."""
    if size is None or size <= 0:
        return False
    padded = -(-size // alignment) * alignment
    return size <= place.room <= padded if place.last else place.room == padded


def bitnet_bytes(path: Path, name: str, kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of bitnet.cpp. Raises EdgeError for a shape that the kind cannot have."""
    word = kind.split("-")[0].upper()
    if not _LINEAR.fullmatch(name) or len(shape) != 2:
        raise EdgeError(
            f"{path}: the tensor {name} of shape {shape} is of bitnet.cpp's type {word}, which edgellm reads "
            "for the linears of the blocks only."
        )
    problem = misfit(kind, *shape)
    if problem or tensor_bytes(kind, *shape) <= 0:
        raise EdgeError(
            f"{path}: the tensor {name} of bitnet.cpp's type {word} has {problem or f'the shape {shape}'}; "
            "the file is damaged or of another layout."
        )
    return tensor_bytes(kind, *shape)


def unpack_bitnet(
    path: Path, tensors: Mapping[str, Tensor], options: BitnetOptions
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[FileId, ...]]:
    """The same tensors with those of bitnet.cpp turned into TQ2_0 and a factor, still unread.

    Those to be turned have one of KINDS as their type and the shape (M, K); their data are the bytes of
    bitnet_bytes. Also returned: a phrase for each thing that was assumed, and the files that were read. That
    I2_S is in its usual layout is warned of unless the options say so: nothing in the file can prove it.

    Raises EdgeError where kernel_config.ini is missing or does not fit the shapes.
    """
    kinds = dict.fromkeys(tensor.type for tensor in tensors.values() if tensor.type in KINDS)
    if not kinds:
        return dict(tensors), (), ()
    notes: list[str] = []
    files: tuple[FileId, ...] = ()
    result: dict[str, Tensor] = {}
    tilings: dict[str, Mapping[tuple[int, int], Tiling]] = {}
    configs: dict[str, Path] = {}
    for kind in kinds:
        if kind not in ("tl1", "tl2"):
            notes.append(f"I2_S of bitnet.cpp is read in its layout {kind}")
            if kind not in options.kinds.values():
                _log.warning(
                    f"{path}: {notes[-1]}, since the file does not tell; if its text makes no sense, an ARM "
                    f"build of 2026 wrote it: set {TYPES_VARIABLE}=36=i2_s-64 (36={kind} silences this)."
                )
            continue
        configs[kind] = config = options.config or _find_config(path, kind)
        files += file_ids([config])
        tilings[kind] = read_kernel_config(config)
        notes.append(f"{kind.upper()} of bitnet.cpp is read with the tilings of {config}")
    for name, tensor in tensors.items():
        if tensor.type not in KINDS:
            result[name] = tensor
            continue
        tiling = None
        if tensor.type in tilings:
            tiling = _tiling(path, tensor, configs[tensor.type], tilings[tensor.type])
        pair = _pair(path, tensor, tiling)
        for part in pair:
            if part != name and part in tensors:
                raise EdgeError(f"{path}: the tensor {part} exists beside the factor inside of {name}.")
        result |= pair
    return result, tuple(notes), files


def _pair(path: Path, tensor: Tensor, tiling: Tiling | None) -> dict[str, LazyTensor]:
    """name.weight and name.scale of a tensor of bitnet.cpp."""
    kind, (rows, columns) = tensor.type, tensor.shape
    size = code_bytes(kind, rows, columns)
    decode = (
        partial(unpack_i2_s, kind=kind)
        if tiling is None
        else partial(unpack_tl1 if kind == "tl1" else unpack_tl2, tiling=tiling)
    )

    def codes() -> np.ndarray:
        try:
            return decode(tensor.data[:size], rows, columns)
        except ValueError as error:
            hint = " or kernel_config.ini is not the one it was converted with" if tiling else ""
            raise EdgeError(
                f"{path}: the tensor {tensor.name} holds {error}; the file is damaged{hint}."
            ) from None

    def factor() -> np.ndarray:
        value = tensor.data[size : size + 4].view("<f4")
        if not np.isfinite(value[0]) or value[0] < 0:  # 0 is the largest magnitude in a matrix of zeros
            raise EdgeError(
                f"{path}: the factor of the tensor {tensor.name} should be a positive number, not "
                f"{value[0]}; the file is damaged."
            )
        return value.astype(np.float32).view(np.uint8)

    # compact: the 3B model that TL1 and TL2 were made for has rows of 3200 and 8640, not multiples of 256
    return ternary_pair(tensor.name.removesuffix(".weight"), (rows, columns), codes, factor, compact=True)


def _find_config(path: Path, kind: str) -> Path:
    """The kernel configuration beside a model: kernel_config.ini, or as the fork names its presets."""
    for name in ("kernel_config.ini", f"kernel_config_{kind}.ini"):
        if path.with_name(name).is_file():
            return path.with_name(name)
    raise EdgeError(
        f"{path}: its tensors are of bitnet.cpp's type {kind.upper()}, which can be read only with the "
        f"kernel_config.ini of the conversion; put it beside the model or set {CONFIG_VARIABLE} to its path."
    )


def read_kernel_config(path: Path) -> dict[tuple[int, int], Tiling]:
    """(M, K) -> tiling, from a kernel_config.ini; of two sections for a shape the first counts, as there.

    Source: bitnet.cpp, utils/codegen_tl1.py and codegen_tl2.py, which write it.
    Raises EdgeError for a file that is missing or is something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_CONFIG).decode()
    except OSError as error:
        raise EdgeError(f"{path}: the kernel configuration cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise EdgeError(f"{path}: the kernel configuration is not a text file.") from None
    parser = configparser.ConfigParser(interpolation=None)
    tilings: dict[tuple[int, int], Tiling] = {}
    try:
        parser.read_string(text)
        for section in parser.sections():
            m, k, *tiling = (int(parser[section][key]) for key in ("m", "k", "bm", "bk", "bmm"))
            tilings.setdefault((m, k), Tiling(*tiling))
    except (configparser.Error, KeyError, ValueError):
        raise EdgeError(
            f"{path}: this is not a kernel_config.ini of bitnet.cpp, whose sections have the numbers m, k, "
            "bm, bk and bmm."
        ) from None
    return tilings


def _tiling(path: Path, tensor: Tensor, config: Path, tilings: Mapping[tuple[int, int], Tiling]) -> Tiling:
    rows, columns = tensor.shape
    tiling = tilings.get((rows, columns))
    if tiling is None:
        raise EdgeError(
            f"{path}: the tensor {tensor.name} has the shape {tensor.shape}, for which {config} has no "
            "section."
        )
    problem = tiling_misfit(tensor.type, rows, columns, tiling)
    if problem:
        raise EdgeError(
            f"{path}: {config} has for the shape {tensor.shape} of {tensor.name} {problem}; it is not the "
            "one that the model was converted with."
        )
    return tiling
