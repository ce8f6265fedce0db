"""What lowering is made of: norms, linears, elementwise ops and quantised inputs, as native instructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.executors.native.buffers import Buffer, Hazards, Workspace
from edgellm.executors.native.cost import Cost, kernel_label, kv_bytes_before, linear_cost
from edgellm.executors.native.instructions import Instruction, Lowered
from edgellm.executors.native.neurons import SparseFfn
from edgellm.executors.native.packing import Part, linear_kernel
from edgellm.executors.native.streamed import StreamedStore
from edgellm.executors.native.weights import WeightStore
from edgellm.kernels import layout
from edgellm.kernels.layout import ROWS, ActLayout, align, record
from edgellm.kernels.memory import address, aligned
from edgellm.program import access, ops
from edgellm.program.program import Program


@dataclass
class _Norm:
    """A norm of whole rows that is not emitted yet."""

    x: Buffer
    out: Buffer
    fields: dict[str, int | float]


def uses_of(rest: Sequence[ops.Op], name: str) -> Iterator[ops.Op]:
    """The ops that read the buffer's present content: those up to the next one that writes it."""
    for op in rest:
        if name in access.reads(op):
            yield op
        if name in access.writes(op):
            return


class Parts:
    """Instructions so far, and what is known of the buffers' content; the ops are lowered by its heirs."""

    def __init__(
        self, program: Program, store: WeightStore | StreamedStore, workspace: Workspace, planes: int,
        kv: str, sparse: SparseFfn | None, watched: bool,
    ):  # fmt: skip
        self.result = Lowered()
        self._planes = planes
        self._rest: Sequence[ops.Op] = ()  # the ops behind the one being lowered
        self._store, self._space = store, workspace
        self._sparse, self._watched = sparse, watched
        self._hazards = Hazards()
        # activation row -> buffer whose content it holds, its rounding, and the zero point of its sums
        self._quantized: dict[str, tuple[str, ops.InputRounding, int | None]] = {}
        self._pending: _Norm | None = None
        self._kv = kv
        self._kv_before = kv_bytes_before(program, kv)

    def _norm(self, op: ops.Norm) -> None:
        x = self._space[op.x]
        private = x.width == op.width and not any(
            isinstance(user, (ops.Rope, ops.KvAppend, ops.Attend)) for user in uses_of(self._rest, op.out)
        )  # those kernels know of one copy only
        out = self._write(op.out, x.width, private)
        self._emit_pending()
        self._pending = self._norm_of(op, x, out)
        if not private:
            self._emit_pending()

    def _norm_of(self, op: ops.Norm, x: Buffer, out: Buffer) -> _Norm:
        """The norm of x, not emitted."""
        weight = self._vector(op.weight, op.width, 1.0, op.weight_offset)
        bias = 0 if op.bias is None else self._vector(op.bias, op.width, 0.0)
        fields: dict[str, int | float] = {
            "X": x.address, "X_STRIDE": x.stride, "X_PRIVATE": int(x.private),
            "OUT": out.address, "OUT_STRIDE": out.stride, "OUT_PRIVATE": int(out.private),
            "GROUPS": x.width // op.width, "WIDTH": op.width, "EPS": float(op.eps), "WEIGHT": weight,
            "BIAS": bias, "LAYER": int(op.kind == "layer"),
        }  # fmt: skip
        return _Norm(x, out, fields)

    def _linear(
        self, x_name: str, out_name: str, weight: ops.Weight, bias: ops.Weight | None,
        add_to: str | None = None, gate: str | None = None, rounding: ops.InputRounding = None,
        some: tuple[int, int] | None = None, lone: bool = False,
    ) -> None:  # fmt: skip
        """out = weight x + bias; or add_to += weight x + bias; or with a gate out = gate(out) * (...). some:
        these rows alone, from one to another, of a weight that is in memory in one piece. lone: for a lone
        token alone; inputs and outputs are in buffers for that."""
        packed, x = self._store[weight], self._space[x_name]
        bias_at = 0 if bias is None else self._vector(bias, packed.n, 0.0)
        fields: dict[str, int | float] = {"TILE_STRIDE": packed.stride}
        if not isinstance(packed.form, str):
            source = self._quantize(
                x, x_name, None if packed.form.asym else packed.zero_shift, rounding, lone
            )
            act = ActLayout(packed.k)
            wide = packed.form.block == 32
            fields |= {
                "BLOCKS": packed.form.blocks,
                "INPUT": source.address, "INPUT_STRIDE": act.stride,
                "INPUT_PRIVATE": int(source.private), "ACT_LOW": act.low, "ACT_SCALE": act.scale,
                "ACT_FSUM": act.fsum32 if wide else act.fsum16,
                "ACT_START": act.start32 if wide else act.start16,
            }  # fmt: skip
            planes, slots = self._planes_of(rounding, lone), "LinearQ"
            fields["LOOSE"] = int(some is not None)
        else:
            planes = 0
            source = x = self._rounded(x, x_name) if rounding else x
            fields |= {
                "INPUT": x.address, "INPUT_STRIDE": x.stride, "INPUT_PRIVATE": int(x.private),
                "INPUTS": packed.k,
            }  # fmt: skip
            slots = "LinearF"
        out = self._write(add_to or out_name, packed.n, lone=lone)
        accumulate = add_to is not None or gate is not None
        fields |= {"OUT_STRIDE": out.stride, "ACCUMULATE": int(accumulate)}
        kernel = linear_kernel(packed.form, planes, rounding is not None) + (f",gate={gate}" if gate else "")
        parts: Sequence[Part] = packed.parts or [Part(0, packed.tiles, packed.address)]
        if some is not None:
            first, end = some[0] // packed.rows, -(-some[1] // packed.rows)
            parts = [Part(first, end - first, parts[0].address + first * packed.stride)]
        for part in parts:
            row = part.first * packed.rows
            rows = min(part.tiles * packed.rows, packed.n - row)
            where = {"WEIGHT": part.address, "TILES": -(-rows // ROWS), "OUT": out.address + 4 * row}
            where["BIAS"] = bias_at and bias_at + 4 * row
            if part is parts[0]:
                reads = [source, out] if accumulate else [source]
                self._emit(kernel, slots, reads=reads, writes=[out], **where, **fields)
            else:  # other rows than the part before, so nobody has to wait
                self._add_instruction(kernel, slots, where | fields)
            last = self.result.instructions[-1]
            last.cost = linear_cost(weight, part.tiles * packed.stride, rows * packed.k, planes)
            last.unit = part.unit

    def _elementwise(
        self, function: str, x_name: str, y_name: str | None, out_name: str, factor: float = 0.0,
        some: tuple[int, int] | None = None, lone: bool = False,
    ) -> None:  # fmt: skip
        """out = f(x, y); some: these columns alone, from one to another, the first a multiple of 16. lone: as
        of _linear."""
        x = self._space[x_name]
        y = self._space[y_name] if y_name else None
        out = self._write(out_name, x.width, lone=lone)
        first, end = some or (0, x.width)
        fields: dict[str, int | float] = {
            "X": x.address + 4 * first,
            "X_STRIDE": x.stride,
            "X_PRIVATE": int(x.private),
        }
        fields["FACTOR"] = float(factor)
        if y is not None:
            fields |= {"Y": y.address + 4 * first, "Y_STRIDE": y.stride, "Y_PRIVATE": int(y.private)}
        self._emit(
            f"elementwise/function={function}", "Elementwise", reads=[b for b in (x, y) if b], writes=[out],
            OUT=out.address + 4 * first, OUT_STRIDE=out.stride, VECTORS=-(-(end - first) // 16), **fields,
        )  # fmt: skip

    def _planes_of(self, rounding: ops.InputRounding, lone: bool = False) -> int:
        """Planes of int8 that the inputs of a quantised weight are kept in: rounded ones need one, and so do
        those of a guess, which is what is made for lone tokens alone."""
        return self._planes if rounding is None and not lone else 1

    def _rounded(self, x: Buffer, name: str) -> Buffer:
        """The rounded rows of x, in float32."""
        out = self._write(f"{name}.rounded", x.width, private=True)
        self._emit(
            "round_rows", "RoundRows", reads=[x], writes=[out], X=x.address, X_STRIDE=x.stride,
            X_PRIVATE=int(x.private), OUT=out.address, OUT_STRIDE=out.stride, WIDTH=x.width,
        )  # fmt: skip
        return out

    def _quantize(
        self, x: Buffer, name: str, shift: int | None, rounding: ops.InputRounding, lone: bool = False
    ) -> Buffer:
        """The activation row that holds x, made now unless it was made before and x has not changed. shift:
        the zero point that its sums have to serve, if any. lone: as of _linear."""
        act = self._space.activation(x.width, lone)
        held, held_rounding, held_shift = self._quantized.get(act.key, ("", None, None))
        if (held, held_rounding) != (name, rounding) or (shift is not None and shift != held_shift):
            shape = ActLayout(x.width)
            kernel, norm = f"quantize/planes={self._planes_of(rounding, lone)}", self._take_norm(x)
            kernel += f",rounding={rounding}" if rounding else ""
            reads, writes, norm_address = [x], [act], 0
            if norm is not None:
                kernel += ",norm=1"
                reads, writes = [norm.x], [x, act]
                self.result.constants.append(record(layout.Norm, **norm.fields))
                norm_address = address(self.result.constants[-1])
            self._emit(
                kernel, "Quantize", reads=reads, writes=writes, NORM=norm_address,
                X=x.address, X_STRIDE=x.stride, X_PRIVATE=int(x.private),
                ACT=act.address, ACT_STRIDE=shape.stride, BLOCKS=shape.blocks, LOW=shape.low,
                SCALE=shape.scale, FSUM32=shape.fsum32, START32=shape.start32,
                FSUM16=shape.fsum16, START16=shape.start16, SHIFT=shift or 0,
            )  # fmt: skip
            self._quantized[act.key] = name, rounding, shift
        return act

    def _take_norm(self, x: Buffer) -> _Norm | None:
        """The norm that makes x and is still to be emitted, for x's reader to do; None if there is none."""
        norm = self._pending
        if norm is None or norm.out.key != x.key:
            return None
        self._pending = None
        return norm

    def _write(self, name: str, width: int, private: bool = False, lone: bool = False) -> Buffer:
        """The buffer `name` about to get new content."""
        for k, (held, *_) in list(self._quantized.items()):
            if held == name:
                del self._quantized[k]
        return self._space.buffer(name, width, private, lone)

    def _vector(self, weight: ops.Weight | None, width: int, default: float, offset: float = 0.0) -> int:
        """Address of a float32 vector, padded to whole tiles."""
        data = aligned(align(width, 16), np.float32)
        if weight is None:
            data[:width] = default
        else:
            data[:width] = self._store.vector(weight) + np.float32(offset)
        self.result.constants.append(data)
        return address(data)

    def _emit_pending(self) -> None:
        """Emits the norm that waits for a reader that would do it."""
        norm, self._pending = self._pending, None
        if norm is not None:
            self._emit("norm", "Norm", reads=[norm.x], writes=[norm.out], **norm.fields)

    def _emit(
        self, kernel: str, slots: str, *, reads: Sequence[Buffer | str], writes: Sequence[Buffer | str],
        **fields: int | float,
    ) -> None:  # fmt: skip
        self._emit_pending()
        one, many = self._hazards.before(reads, writes)
        if self.result.instructions:
            last = self.result.instructions[-1]
            last.barrier_one |= one
            last.barrier_many |= many
        self._add_instruction(kernel, slots, fields)

    def _add_instruction(self, kernel: str, slots: str, fields: Mapping[str, int | float]) -> None:
        arguments = record(getattr(layout, slots), **fields)
        self.result.instructions.append(Instruction(kernel, arguments, Cost(kernel_label(kernel))))
