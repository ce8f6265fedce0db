"""Lowers a Program to a flat list of native instructions: kernels with their argument records.

Three things happen on the way. A Linear or Ffn whose result is only added to another buffer adds it
itself. An input of quantised weights is quantised once, right before its first use, together with the norm
that makes it. And a barrier is set only between instructions that touch the same data from different threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.executors.native.buffers import Buffer, Hazards, Workspace
from edgellm.executors.native.cost import Cost, attend_cost, kernel_label, kv_bytes_before, linear_cost
from edgellm.executors.native.instructions import Group, Instruction, Lowered
from edgellm.executors.native.packing import Part, kernel_form, linear_kernel
from edgellm.executors.native.streamed import StreamedStore
from edgellm.executors.native.weights import WeightStore
from edgellm.kernels import layout
from edgellm.kernels.layout import ROWS, ActLayout, TileLayout, align, record
from edgellm.kernels.memory import address, aligned
from edgellm.program import access, ops
from edgellm.program.program import Program

_BY_POSITION = (ops.Embed, ops.Rope, ops.KvAppend, ops.Attend)  # they know rows by their place in a sequence
EMBED_CHUNK = 256  # inputs of a float embedding row that one thread copies at a time


@dataclass
class _Norm:
    """A norm of whole rows that is not emitted yet."""

    x: Buffer
    out: Buffer
    fields: dict[str, int | float]


def _uses(rest: Sequence[ops.Op], name: str) -> Iterator[ops.Op]:
    """The ops that read the buffer's present content: those up to the next one that writes it."""
    for op in rest:
        if name in access.reads(op):
            yield op
        if name in access.writes(op):
            return


def _live(rest: Sequence[ops.Op]) -> list[str]:
    """The buffers whose present content the ops `rest` read."""
    names = dict.fromkeys(name for op in rest for name in (*access.reads(op), *access.writes(op)))
    return [name for name in names if any(_uses(rest, name))]


def _added_to(op: ops.Linear | ops.Ffn, rest: Sequence[ops.Op]) -> str | None:
    """The buffer that all of op's result goes to, by the Add right behind it, or None."""
    following = rest[0] if rest else None
    if not isinstance(following, ops.Add):
        return None
    target = following.out
    if {following.x, following.y} != {op.out, target} or target in (op.out, op.x):
        return None
    return None if any(_uses(rest[1:], op.out)) else target


class Lowering:
    """Walks a Program once; `result` is what came of it."""

    def __init__(
        self,
        program: Program,
        store: WeightStore | StreamedStore,
        workspace: Workspace,
        planes: int,
        kv: str,
    ):
        self.result = Lowered()
        self._planes = planes
        self._rest: Sequence[ops.Op] = ()  # the ops behind the one being lowered
        self._store, self._space = store, workspace
        self._hazards = Hazards()
        # width -> buffer whose content the activation row holds, its rounding, and the zero point of its sums
        self._quantized: dict[int, tuple[str, ops.InputRounding, int | None]] = {}
        self._pending: _Norm | None = None
        self._kv = kv
        self._kv_before = kv_bytes_before(program, kv)
        handlers: dict[type, Callable] = {
            ops.Embed: self._embed, ops.Norm: self._norm, ops.Rope: self._rope, ops.KvAppend: self._append,
            ops.Attend: self._attend, ops.Add: self._add, ops.Scale: self._scale, ops.Softcap: self._softcap,
            ops.Logits: self._logits,
        }  # fmt: skip
        last = max(i for i, op in enumerate(program.ops) if isinstance(op, _BY_POSITION))
        fused = -1  # index of an Add that the op before it has done
        layer: int | None = None
        for i, op in enumerate(program.ops):
            if i == fused:
                continue
            if op.layer != layer:
                layer = op.layer
                self._begin_group(_live(program.ops[i:]))
            self._rest = program.ops[i + 1 :]
            if isinstance(op, (ops.Linear, ops.Ffn)):
                target = _added_to(op, self._rest)
                if target is not None and self._space[target].private:
                    target = None  # every thread has a copy, of which it would change its part only
                if target is not None:
                    fused = i + 1
                if isinstance(op, ops.Linear):
                    self._linear(op.x, op.out, op.weight, op.bias, target, rounding=op.rounding)
                else:
                    self._ffn(op, target)
            else:
                handlers[type(op)](op)
            if i == last:
                self._select(_live(self._rest))
        self._emit_pending()
        self.result.instructions[-1].barrier_one = self.result.instructions[-1].barrier_many = True

    # -- ops ---------------------------------------------------------------------------------------

    def _embed(self, op: ops.Embed) -> None:
        packed = self._store.table(op.table) if op.index == "token" else self._store[op.table]
        out = self._write(op.out, packed.k)
        fields: dict[str, int | float] = {
            "FACTOR": float(op.scale), "WEIGHT": packed.address, "TILE_STRIDE": packed.stride,
            "ZERO_SHIFT": packed.zero_shift,
        }  # fmt: skip
        if isinstance(packed.form, TileLayout):
            kernel = f"embed/kind=q,{kernel_form(packed.form)}"
            fields |= {"COUNT": packed.form.blocks}
        else:
            kernel = f"embed/{kernel_form(packed.form)}"
            fields |= {"COUNT": -(-packed.k // EMBED_CHUNK), "CHUNK": EMBED_CHUNK, "INPUTS": packed.k}
        positions = int(op.index == "position")
        fields |= {"OUT": out.address, "OUT_STRIDE": out.stride, "POSITIONS": positions, "SHIFT": op.offset}
        self._emit(kernel, "Embed", reads=[], writes=[out], **fields)

    def _norm(self, op: ops.Norm) -> None:
        x = self._space[op.x]
        groups = x.width // op.width
        private = groups == 1 and not any(
            isinstance(user, (ops.Rope, ops.KvAppend, ops.Attend)) for user in _uses(self._rest, op.out)
        )  # those kernels know of one copy only
        out = self._write(op.out, x.width, private)
        weight = self._vector(op.weight, op.width, 1.0, op.weight_offset)
        bias = 0 if op.bias is None else self._vector(op.bias, op.width, 0.0)
        fields: dict[str, int | float] = {
            "X": x.address, "X_STRIDE": x.stride, "X_PRIVATE": int(x.private),
            "OUT": out.address, "OUT_STRIDE": out.stride, "OUT_PRIVATE": int(private),
            "GROUPS": groups, "WIDTH": op.width, "EPS": float(op.eps), "WEIGHT": weight, "BIAS": bias,
            "LAYER": int(op.kind == "layer"),
        }  # fmt: skip
        self._emit_pending()
        self._pending = _Norm(x, out, fields)
        if not private:
            self._emit_pending()

    def _linear(
        self, x_name: str, out_name: str, weight: ops.Weight, bias: ops.Weight | None,
        add_to: str | None = None, gate: str | None = None, rounding: ops.InputRounding = None,
    ) -> None:  # fmt: skip
        """out = weight x + bias; or add_to += weight x + bias; or with a gate out = gate(out) * (...)."""
        packed, x = self._store[weight], self._space[x_name]
        bias_at = 0 if bias is None else self._vector(bias, packed.n, 0.0)
        fields: dict[str, int | float] = {"TILE_STRIDE": packed.stride}
        if not isinstance(packed.form, str):
            source = self._quantize(x, x_name, None if packed.form.asym else packed.zero_shift, rounding)
            act = ActLayout(packed.k)
            wide = packed.form.block == 32
            fields |= {
                "BLOCKS": packed.form.blocks,
                "INPUT": source.address, "INPUT_STRIDE": act.stride,
                "INPUT_PRIVATE": int(source.private), "ACT_LOW": act.low, "ACT_SCALE": act.scale,
                "ACT_FSUM": act.fsum32 if wide else act.fsum16,
                "ACT_START": act.start32 if wide else act.start16,
            }  # fmt: skip
            planes, slots = self._planes_of(rounding), "LinearQ"
        else:
            planes = 0
            source = x = self._rounded(x, x_name) if rounding else x
            fields |= {
                "INPUT": x.address, "INPUT_STRIDE": x.stride, "INPUT_PRIVATE": int(x.private),
                "INPUTS": packed.k,
            }  # fmt: skip
            slots = "LinearF"
        out = self._write(add_to or out_name, packed.n)
        accumulate = add_to is not None or gate is not None
        fields |= {"OUT_STRIDE": out.stride, "ACCUMULATE": int(accumulate)}
        kernel = linear_kernel(packed.form, planes, rounding is not None) + (f",gate={gate}" if gate else "")
        for part in packed.parts or [Part(0, packed.tiles, packed.address)]:
            row = part.first * packed.rows
            rows = min(part.tiles * packed.rows, packed.n - row)
            where = {"WEIGHT": part.address, "TILES": -(-rows // ROWS), "OUT": out.address + 4 * row}
            where["BIAS"] = bias_at and bias_at + 4 * row
            if part.first == 0:
                reads = [source, out] if accumulate else [source]
                self._emit(kernel, slots, reads=reads, writes=[out], **where, **fields)
            else:  # other rows than the part before, so nobody has to wait
                self._add_instruction(kernel, slots, where | fields)
            last = self.result.instructions[-1]
            last.cost = linear_cost(weight, part.tiles * packed.stride, rows * packed.k, planes)
            last.unit = part.unit

    def _ffn(self, op: ops.Ffn, add_to: str | None) -> None:
        if op.gate is not None:
            self._linear(op.x, "ffn.act", op.gate, None, rounding=op.rounding)
            self._linear(op.x, "ffn.act", op.up, op.up_bias, gate=op.activation, rounding=op.rounding)
        else:
            self._linear(op.x, "ffn.up", op.up, op.up_bias, rounding=op.rounding)
            self._elementwise(op.activation, "ffn.up", None, "ffn.act")
        hidden = "ffn.act"
        if op.sub_norm is not None:
            self._norm(
                ops.Norm(x=hidden, out="ffn.norm", width=op.neurons, eps=op.sub_norm_eps, weight=op.sub_norm)
            )
            hidden = "ffn.norm"
        self._linear(hidden, op.out, op.down, op.down_bias, add_to, rounding=op.rounding)

    def _rope(self, op: ops.Rope) -> None:
        x = self._write(op.x, self._space[op.x].width)
        self._emit(
            f"rope/style={op.style}", "Rope", reads=[x], writes=[x], X=x.address, X_STRIDE=x.stride,
            HEADS=op.heads, HEAD_DIM=op.head_dim, HALF=len(op.inv_freq),
        )  # fmt: skip
        self.result.ropes.append((op, self.result.instructions[-1].record))

    def _append(self, op: ops.KvAppend) -> None:
        k, v = self._space[op.k], self._space[op.v]
        kernel = f"attention/part=append,kv={self._kv},dim={op.head_dim}"
        self._emit(
            kernel, "Append", reads=[k, v], writes=[f"kv{op.slot}"],
            K=k.address, V=v.address, K_STRIDE=k.stride, V_STRIDE=v.stride, KV_HEADS=op.kv_heads,
            KV_BEFORE=self._kv_before[op.slot], KV_STRIDE=self._kv_before[-1],
        )  # fmt: skip

    def _attend(self, op: ops.Attend) -> None:
        q = self._space[op.q]
        out = self._write(op.out, op.heads * op.head_dim)
        group = op.heads // op.kv_heads
        kernel = f"attention/part=attend,kv={self._kv},dim={op.head_dim},group={group}"
        self._emit(
            kernel, "Attend", reads=[q, f"kv{op.slot}"], writes=[out],
            Q=q.address, Q_STRIDE=q.stride, OUT=out.address, OUT_STRIDE=out.stride, KV_HEADS=op.kv_heads,
            KV_BEFORE=self._kv_before[op.slot], KV_STRIDE=self._kv_before[-1],
            SCALE=float(op.scale), WINDOW=op.window or 0, SOFTCAP=float(op.softcap or 0.0),
        )  # fmt: skip
        self.result.instructions[-1].cost = attend_cost(op, self._kv)

    def _add(self, op: ops.Add) -> None:
        self._elementwise("add", op.x, op.y, op.out)

    def _scale(self, op: ops.Scale) -> None:
        self._elementwise("scale", op.x, None, op.out, op.factor)

    def _softcap(self, op: ops.Softcap) -> None:
        self._elementwise("softcap", op.x, None, op.out, op.cap)

    def _logits(self, op: ops.Logits) -> None:
        self._linear(op.x, op.out, op.weight, op.bias)

    # -- parts -------------------------------------------------------------------------------------

    def _begin_group(self, live: Sequence[str]) -> None:
        """From here on the rows may be others: nothing but the buffers `live` is taken over."""
        self._emit_pending()
        self._quantized.clear()
        buffers = tuple(self._space[name] for name in live)
        self.result.groups.append(Group(len(self.result.instructions), buffers))

    def _select(self, names: Sequence[str]) -> None:
        """From here on only the wanted rows count; `names` are the buffers that are still needed. A lone
        row stays where it is, so nobody has to wait; of several rows, any thread may have written any."""
        self._emit_pending()
        self.result.instructions[-1].barrier_many = True
        for name in names:
            x = self._space[name]
            self._emit(
                "select", "Select", reads=[], writes=[], X=x.address, X_STRIDE=x.stride,
                X_PRIVATE=int(x.private), WIDTH=align(x.width, 16),
            )  # fmt: skip
        self.result.instructions[-1].barrier_many = True
        self._hazards.meet()
        self._quantized.clear()
        self.result.tail = len(self.result.instructions)

    def _elementwise(
        self, function: str, x_name: str, y_name: str | None, out_name: str, factor: float = 0.0
    ) -> None:
        x = self._space[x_name]
        y = self._space[y_name] if y_name else None
        out = self._write(out_name, x.width)
        fields = {"X": x.address, "X_STRIDE": x.stride, "X_PRIVATE": int(x.private), "FACTOR": float(factor)}
        if y is not None:
            fields |= {"Y": y.address, "Y_STRIDE": y.stride, "Y_PRIVATE": int(y.private)}
        self._emit(
            f"elementwise/function={function}", "Elementwise", reads=[b for b in (x, y) if b], writes=[out],
            OUT=out.address, OUT_STRIDE=out.stride, VECTORS=-(-x.width // 16), **fields,
        )  # fmt: skip

    def _planes_of(self, rounding: ops.InputRounding) -> int:
        """Planes of int8 that the inputs of a quantised weight are kept in: rounded ones need one."""
        return self._planes if rounding is None else 1

    def _rounded(self, x: Buffer, name: str) -> Buffer:
        """The rounded rows of x, in float32."""
        out = self._write(f"{name}.rounded", x.width, private=True)
        self._emit(
            "round_rows", "RoundRows", reads=[x], writes=[out], X=x.address, X_STRIDE=x.stride,
            X_PRIVATE=int(x.private), OUT=out.address, OUT_STRIDE=out.stride, WIDTH=x.width,
        )  # fmt: skip
        return out

    def _quantize(self, x: Buffer, name: str, shift: int | None, rounding: ops.InputRounding) -> Buffer:
        """The activation row that holds x, made now unless it was made before and x has not changed. shift:
        the zero point that its sums have to serve, if any."""
        act = self._space.activation(x.width)
        held, held_rounding, held_shift = self._quantized.get(x.width, ("", None, None))
        if (held, held_rounding) != (name, rounding) or (shift is not None and shift != held_shift):
            shape = ActLayout(x.width)
            kernel, norm = f"quantize/planes={self._planes_of(rounding)}", self._take_norm(x)
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
            self._quantized[x.width] = name, rounding, shift
        return act

    def _take_norm(self, x: Buffer) -> _Norm | None:
        """The norm that makes x and is still to be emitted, for x's reader to do; None if there is none."""
        norm = self._pending
        if norm is None or norm.out.key != x.key:
            return None
        self._pending = None
        return norm

    def _write(self, name: str, width: int, private: bool = False) -> Buffer:
        """The buffer `name` about to get new content."""
        for k, (held, *_) in list(self._quantized.items()):
            if held == name:
                del self._quantized[k]
        return self._space.buffer(name, width, private)

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
