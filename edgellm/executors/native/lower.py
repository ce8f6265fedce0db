"""Lowers a Program to a flat list of native instructions: kernels with their argument records.

Three things happen on the way. A Linear or Ffn whose result is only added to another buffer adds it
itself. An input of quantised weights is quantised once, right before its first use, together with the norm
that makes it. And a barrier is set only between instructions that touch the same data from different threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgellm.executors.native.buffers import Workspace
from edgellm.executors.native.cost import attend_cost
from edgellm.executors.native.instructions import Group
from edgellm.executors.native.lower_ffn import FfnParts
from edgellm.executors.native.lower_parts import uses_of
from edgellm.executors.native.neurons import SparseFfn
from edgellm.executors.native.packing import kernel_form
from edgellm.executors.native.streamed import StreamedStore
from edgellm.executors.native.weights import WeightStore
from edgellm.kernels.layout import TileLayout, align
from edgellm.program import access, ops
from edgellm.program.program import Program

_BY_POSITION = (ops.Embed, ops.Rope, ops.KvAppend, ops.Attend)  # they know rows by their place in a sequence
EMBED_CHUNK = 256  # inputs of a float embedding row that one thread copies at a time


def _live(rest: Sequence[ops.Op]) -> list[str]:
    """The buffers whose present content the ops `rest` read."""
    names = dict.fromkeys(name for op in rest for name in (*access.reads(op), *access.writes(op)))
    return [name for name in names if any(uses_of(rest, name))]


def _added_to(op: ops.Linear | ops.Ffn, rest: Sequence[ops.Op]) -> str | None:
    """The buffer that all of op's result goes to, by the Add right behind it, or None."""
    following = rest[0] if rest else None
    if not isinstance(following, ops.Add):
        return None
    target = following.out
    if {following.x, following.y} != {op.out, target} or target in (op.out, op.x):
        return None
    return None if any(uses_of(rest[1:], op.out)) else target


class Lowering(FfnParts):
    """Walks a Program once; `result` is what came of it."""

    def __init__(
        self, program: Program, store: WeightStore | StreamedStore, workspace: Workspace, planes: int,
        kv: str, sparse: SparseFfn | None = None, watched: bool = False,
    ):  # fmt: skip
        """sparse: how FFNs are computed whose neurons are in slots. watched: others stop behind the gate."""
        super().__init__(program, store, workspace, planes, kv, sparse, watched)
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
