"""A checkpoint's weights in the kernels' layout: mapped from an earlier start's file, or packed now."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from edgellm.errors import EdgeError
from edgellm.executors.native.packed_file import PAGE, PackedFile, why_not, write_all
from edgellm.executors.native.packing import (
    TERNARY,
    VECTOR,
    Form,
    Packed,
    form_of,
    kernel_form,
    pack_kernel,
    pack_tiles,
    rows_are_uniform,
    vector_values,
)
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.ternary import LazyTensor
from edgellm.kernels.codes import CODE_FORMS
from edgellm.kernels.layout import align
from edgellm.kernels.memory import HUGE_PAGE, address, aligned, map_over, memory_limit, reserve
from edgellm.program.ops import Weight

WINDOW = HUGE_PAGE  # bytes packed and written at once: a file system can keep them in one huge page
_log = logging.getLogger("edgellm")

Write = Callable[[np.ndarray, int], None]  # bytes, and where they belong in the arena


class WeightStore:
    """All weights of a Program in one piece of memory, at addresses that hold from the start.

    matrices are packed into tiles, vectors (norms, biases) into float32. A pack that an earlier start left
    on disk is mapped at once; otherwise pack() makes one and maps it, or packs into memory where none can
    be kept.
    """

    def __init__(
        self, checkpoint: Checkpoint, matrices: Iterable[Weight], vectors: Iterable[Weight] = (), *,
        base3: Collection[Weight] = (), in_memory: bool = True,
    ):  # fmt: skip
        """base3: those to pack in base 3 if they are ternary and their rows have a single scale. in_memory:
        the weights will be wanted here; else only the file is, see keep()."""
        self._checkpoint, self._base3 = checkpoint, frozenset(base3)
        self._unkept = why_not(checkpoint)
        plan, offsets, self.nbytes, self._file = self._choose(list(matrices), list(vectors))
        limit = memory_limit()
        if in_memory and limit is not None and self.nbytes > limit:
            raise EdgeError(
                f"{checkpoint.path}: its weights take {self.nbytes / 2**30:.1f} GiB in memory, which has "
                f"{limit / 2**30:.1f} GiB; choose a smaller quantisation."
            )
        start = self._file.start if self._file else 0
        # Kernels prefetch a little beyond the last tile.
        self._arena = reserve(start + self.nbytes + PAGE, huge_pages=True, what="the packed weights")
        base = address(self._arena) + start
        self._packed = {
            weight: Packed(base + offset, packed.n, packed.k, packed.form, packed.zero_shift)
            for (weight, packed), offset in zip(plan.items(), offsets, strict=True)
        }
        self._mapped = in_memory and self._file is not None and self._file.map_over(self._arena)
        self._kept = self._mapped or (self._file is not None and self._file.fits())
        self._filled = self._mapped

    def __getitem__(self, weight: Weight) -> Packed:
        return self._packed[weight]

    def table(self, weight: Weight) -> Packed:
        """What an Embed of token ids looks up in."""
        return self._packed[weight]

    def vector(self, weight: Weight) -> np.ndarray:
        """float32 values of a vector; the model's file is read only if there is no pack yet."""
        packed = self._packed[weight]
        if not self._filled:
            return vector_values(self._checkpoint.tensors[weight.name], weight)
        start = packed.address - address(self._arena)
        return self._arena[start : start + 4 * packed.k].view(np.float32)

    @property
    def forms(self) -> dict[Weight, Form]:
        """The layout of every matrix; known before anything is packed."""
        return {weight: packed.form for weight, packed in self._packed.items() if packed.form != VECTOR}

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels that pack() needs; none where there is nothing to pack."""
        matrices = () if self._kept else self.forms
        tensors = self._checkpoint.tensors
        return sorted({pack_kernel(tensors[w.name], w, self._packed[w].form) for w in matrices})

    @property
    def source(self) -> str:
        """One phrase: where the weights in memory come from."""
        if self._mapped and self._file:
            return f"mapped from {self._file.path}"
        return f"packed into memory ({self._unkept})"

    def pack(
        self, kernels: Mapping[str, int], threads: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Pack the weights unless they are mapped. kernels: addresses by name. progress(bytes done, in all).

        Raises EdgeError if the model's file changes meanwhile.
        """
        if self._filled:
            return
        if self._file:
            try:
                self._write(kernels, threads, progress, mapped=True)
            except OSError as error:
                self._unkept = (error.strerror or str(error)).lower()
                _log.warning(
                    f"{self._file.path}: the packed weights cannot be kept ({self._unkept}), so every start "
                    "will pack them again; free some space, set EDGELLM_CACHE to another folder, or accept "
                    "it with EDGELLM_PACKED=off."
                )
        if not self._mapped:
            self._fill(self._store, kernels, threads, progress)
        self._filled = True

    def keep(
        self, kernels: Mapping[str, int], threads: int, progress: Callable[[int, int], None] | None = None
    ) -> Path:
        """The file of packed weights, made if it is not there. Nothing of it stays in memory.

        Raises EdgeError where no file can be kept.
        """
        if self._file is None:
            raise EdgeError(
                f"{self._checkpoint.path}: weights can only be read as needed from a file of packed "
                f"ones, and none is kept ({self._unkept})."
            )
        if not self._kept:
            try:
                self._write(kernels, threads, progress, mapped=False)
            except OSError as error:
                raise EdgeError(
                    f"{self._file.path}: the packed weights cannot be written ({error.strerror or error}); "
                    "free some space or set EDGELLM_CACHE to another folder."
                ) from None
            self._kept = True
        return self._file.path

    @property
    def layout(self) -> tuple[dict[Weight, Packed], dict[Weight, int]]:
        """How every weight is packed, and where its tiles begin in the file."""
        base = address(self._arena)
        return self._packed, {weight: packed.address - base for weight, packed in self._packed.items()}

    # -- parts -------------------------------------------------------------------------------------

    def _write(
        self,
        kernels: Mapping[str, int],
        threads: int,
        progress: Callable[[int, int], None] | None,
        mapped: bool,
    ) -> None:
        """The file; mapped: then map it. Raises OSError."""
        assert self._file is not None
        with self._file.writing() as file:
            write_all(file, np.frombuffer(self._file.header, np.uint8), 0)
            self._fill(partial(write_all, file), kernels, threads, progress)
            if mapped:
                map_over(self._arena, file, self._file.nbytes)
                self._mapped = True

    def _choose(
        self, matrices: Sequence[Weight], vectors: Sequence[Weight]
    ) -> tuple[dict[Weight, Packed], list[int], int, PackedFile | None]:
        """The plan, its offsets and bytes, and the file that keeps it. Whether the rows of all ternary
        tensors have a single scale decides between two plans; a file that is there tells without reading
        the tensors."""
        tensors = {weight.name: self._checkpoint.tensors[weight.name] for weight in matrices}
        ternary = [tensor for tensor in tensors.values() if tensor.type in TERNARY]
        if not ternary:
            return self._planned(matrices, vectors, uniform=False)
        for uniform in (True, False):
            planned = self._planned(matrices, vectors, uniform)
            if planned[3] is not None and planned[3].fits():
                return planned
        return self._planned(matrices, vectors, uniform=all(map(rows_are_uniform, ternary)))

    def _planned(
        self, matrices: Sequence[Weight], vectors: Sequence[Weight], uniform: bool
    ) -> tuple[dict[Weight, Packed], list[int], int, PackedFile | None]:
        plan = {weight: self._matrix(weight, uniform) for weight in matrices}
        plan |= {weight: self._vector(weight) for weight in vectors if weight not in plan}
        offsets, nbytes = [], 0
        for packed in plan.values():
            offsets.append(nbytes)
            nbytes += align(packed.nbytes)
        file = None
        if self._unkept is None:
            facts = zip(plan.items(), offsets, strict=True)
            file = PackedFile(self._checkpoint, [_facts(w, p, o) for (w, p), o in facts], nbytes)
        return plan, offsets, nbytes, file

    def _matrix(self, weight: Weight, uniform: bool) -> Packed:
        tensor = self._checkpoint.tensors[weight.name]
        if len(tensor.shape) != 2:
            raise EdgeError(f"{self._checkpoint.path}: tensor {weight.name} must have two dimensions.")
        n, k = tensor.shape
        if weight.rows is not None:
            n = weight.rows[1] - weight.rows[0]
        form = form_of(tensor.type, k, uniform, weight in self._base3)
        if not isinstance(form, str):
            return Packed(0, n, k, form, CODE_FORMS[tensor.type].zero_shift)
        return Packed(
            0, n, k, "f32" if weight.scale != 1 else form
        )  # a scaled float16 would be rounded again

    def _vector(self, weight: Weight) -> Packed:
        tensor = self._checkpoint.tensors[weight.name]
        return Packed(
            0, 1, tensor.elements if weight.rows is None else weight.rows[1] - weight.rows[0], VECTOR
        )

    def _store(self, data: np.ndarray, offset: int) -> None:
        self._arena[offset : offset + len(data)] = data

    def _fill(
        self,
        write: Write,
        kernels: Mapping[str, int],
        threads: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Pack everything, window by window of the arena."""
        base = address(self._arena)
        spans = [(packed.address - base, weight, packed) for weight, packed in self._packed.items()]
        first = spans[0][0]
        cuts = [first, *range(align(first + 1, WINDOW), first + self.nbytes, WINDOW), first + self.nbytes]
        room = WINDOW + 2 * max(packed.stride for _, _, packed in spans)  # a tile may begin or end outside
        own = threading.local()  # one buffer a thread: new memory for every window would cost page faults

        def window(begin: int, end: int) -> int:
            if not hasattr(own, "buffer"):
                own.buffer = aligned(room, np.uint8)
            own.buffer[:] = 0
            origin = begin
            for at, weight, packed in spans:
                tiles = range(
                    max(0, begin - at) // packed.stride, min(packed.tiles, -(-(end - at) // packed.stride))
                )
                if tiles:
                    low = at + tiles.start * packed.stride
                    origin = min(origin, low)
                    area = own.buffer[low - origin :][: len(tiles) * packed.stride]
                    tensor = self._checkpoint.tensors[weight.name]
                    pack_tiles(tensor, weight, packed, tiles, area.reshape(len(tiles), -1), kernels)
            write(own.buffer[begin - origin : end - origin], begin)
            return end

        with ThreadPoolExecutor(threads) as pool:
            for end in pool.map(window, cuts, cuts[1:]):
                for at, weight, packed in spans:
                    tensor = self._checkpoint.tensors[weight.name]
                    if at + packed.nbytes <= end and isinstance(tensor, LazyTensor):
                        tensor.forget()
                if progress:
                    progress(end - first, self.nbytes)


def _facts(weight: Weight, packed: Packed, offset: int) -> dict[str, object]:
    """All that decides what a weight is packed into, for the header of the file."""
    return {
        "name": weight.name, "rows": weight.rows, "scale": weight.scale, "n": packed.n, "k": packed.k,
        "form": VECTOR if packed.form == VECTOR else kernel_form(packed.form),
        "zero_shift": packed.zero_shift, "offset": offset, "nbytes": packed.nbytes,
    }  # fmt: skip
