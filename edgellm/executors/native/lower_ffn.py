"""FFNs as native instructions: dense, or of the neurons that fire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.executors.native.buffers import Buffer
from edgellm.executors.native.cost import Cost
from edgellm.executors.native.lower_parts import Parts
from edgellm.executors.native.neurons import CHECK_KERNEL, Cut, SparseFfn
from edgellm.formats.slots import Role
from edgellm.kernels.layout import ActLayout, NeuronAhead, NeuronFire, align
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.neuron_codes import SCALED, UNIT
from edgellm.program import ops

NO_THRESHOLD = -1e38  # of activations
COLUMNS = 4  # number of the counter; those before are for rows


class FfnParts(Parts):
    """Lowers Ffn ops."""

    def _ffn(self, op: ops.Ffn, add_to: str | None) -> None:
        if self._sparse is not None:
            self._sparse_ffn(op, add_to, self._sparse)
            return
        if op.gate is not None:
            self._linear(op.x, "ffn.act", op.gate, None, rounding=op.rounding)
            self._show("ffn.act", op)
            if op.threshold:
                self._elementwise("above", "ffn.act", None, "ffn.act", op.threshold)
            self._linear(op.x, "ffn.act", op.up, op.up_bias, gate=op.activation, rounding=op.rounding)
        else:
            self._linear(op.x, "ffn.up", op.up, op.up_bias, rounding=op.rounding)
            self._show("ffn.up", op)
            self._elementwise(op.activation, "ffn.up", None, "ffn.act")
            if op.threshold:
                self._elementwise("above", "ffn.act", None, "ffn.act", op.threshold)
        self._linear(self._hidden(op), op.out, op.down, op.down_bias, add_to, rounding=op.rounding)

    def _hidden(self, op: ops.Ffn) -> str:
        """The buffer that down multiplies."""
        if op.sub_norm is None:
            return "ffn.act"
        self._norm(
            ops.Norm(x="ffn.act", out="ffn.norm", width=op.neurons, eps=op.sub_norm_eps, weight=op.sub_norm)
        )
        return "ffn.norm"

    def _sparse_ffn(self, op: ops.Ffn, add_to: str | None, sparse: SparseFfn) -> None:
        """Who fires is predicted; or found out from the gate, or without one from up, which is in memory."""
        lists = sparse.lists
        if sparse.gates:
            down, up, bias = sparse.predictor(op)
            self._linear(op.x, "ffn.rank", down, None)
            self._elementwise("relu", "ffn.rank", None, "ffn.rank")
            self._linear("ffn.rank", "ffn.act", up, bias)
            self._elementwise("relu", "ffn.act", None, "ffn.act")  # scores: what is 0 will not fire
            self._fire(op, (0, op.neurons), 0, sparse)
        else:
            self._gate(op, sparse)
        if sparse.without_ring:
            self._cut(Cut(self._here(), "fire", self._layer(op)))
        guessed = None if sparse.ahead is None else self._guess(sparse.ahead, sparse)
        act = self._space["ffn.act"]
        pairs = ((lists.gate_here, lists.here), (lists.gate_arriving, lists.arriving))
        for i, (gates, neurons) in enumerate(pairs):
            if sparse.gates:
                self._neuron_rows(op, "gate", None, gates, act, sparse, 2 * i)
            if op.gate is not None:
                self._neuron_rows(op, "up", op.up_bias, neurons, act, sparse, 2 * i + 1)
            if neurons is lists.here:
                self._arrive(op, sparse)
        if guessed is not None:
            self._read_ahead(guessed, sparse)
        self._neuron_columns(op, self._hidden(op), add_to, sparse)
        self._emit("neuron_keep", "NeuronKeep", reads=["neurons"], writes=[])
        self.result.instructions[-1].record = lists.keep[self._layer(op)]

    def _arrive(self, op: ops.Ffn, sparse: SparseFfn) -> None:
        """Wait for the neurons that were not in memory, and compare their checksums."""
        layer, lists = self._layer(op), sparse.lists
        stops = [(CHECK_KERNEL, "NeuronCheck", lists.check[layer], lists.stops[1:])]
        if sparse.without_ring:
            self._cut(Cut(self._here(), "arrive", layer))
        else:
            stops.insert(0, ("neuron_arrive", "NeuronArrive", lists.arrive[layer], lists.stops))
        for kernel, slots, arguments, word in stops:
            self._emit(kernel, slots, reads=[], writes=["neurons"])
            last = self.result.instructions[-1]
            last.record, last.stops = arguments, address(word)
            last.barrier_one = last.barrier_many = True
            self._hazards.meet(lone=True)

    def _guess(self, some: tuple[int, int], sparse: SparseFfn) -> int | None:
        """Of the next layer's neurons `some`, find out which would fire for the present residual stream,
        which that layer's attention and this FFN have still to change. Returns that layer; None where that
        cannot be done."""
        following = next((op for op in self._rest if isinstance(op, ops.Ffn)), None)
        if following is None:
            return None
        weight = following.up if following.gate is None else following.gate
        norm = next((op for op in self._rest if isinstance(op, ops.Norm) and op.out == following.x), None)
        if norm is None or following.rounding or isinstance(self._store[weight].form, str):
            return None
        x = self._space[norm.x]
        if x.width != norm.width or not self._in_one_piece(weight):
            return None
        begin, layer = self._here(), self._layer(following)
        self._pending = self._norm_of(norm, x, self._write("ahead.x", x.width, private=True, lone=True))
        bias = following.up_bias if following.gate is None else None
        self._linear("ahead.x", "ahead.act", weight, bias, some=some, lone=True)
        self._elementwise(following.activation, "ahead.act", None, "ahead.act", some=some, lone=True)
        act = self._space["ahead.act"]
        sparse.lists.set(
            NeuronAhead, sparse.lists.ahead_of[layer], FIRST=some[0], LAST=some[1], ACT=act.address,
            THRESHOLD=sparse.threshold(following),
        )  # fmt: skip
        for instruction in self.result.instructions[begin:]:
            instruction.lone = True
        return layer

    def _read_ahead(self, layer: int, sparse: SparseFfn) -> None:
        """Begin to read the neurons that were guessed. The columns that follow are taken on demand, so
        threads meet in front of it, although it has nothing to do with the activations."""
        reads = [self._space["ahead.act"], self._space["ffn.act"]]
        self._emit("neuron_ahead", "NeuronAhead", reads=reads, writes=[])
        last = self.result.instructions[-1]
        last.record, last.lone = sparse.lists.ahead_of[layer], True

    def _gate(self, op: ops.Ffn, sparse: SparseFfn) -> None:
        """act = f(gate x), and who fires of it, in parts if all of the gate is in memory."""
        gate = op.up if op.gate is None else op.gate
        bias = op.up_bias if op.gate is None else None
        parts: Sequence[tuple[int, int] | None] = [None]
        if len(sparse.parts) > 1 and self._in_one_piece(gate):
            parts = sparse.parts
        for i, part in enumerate(parts):
            self._linear(op.x, "ffn.act", gate, bias, rounding=op.rounding, some=part)
            self._elementwise(op.activation, "ffn.act", None, "ffn.act", some=part)
            self._fire(op, part or (0, op.neurons), i, sparse)

    def _in_one_piece(self, weight: ops.Weight) -> bool:
        """Whether all of a weight is in memory, so that some of its rows can be asked for."""
        pieces = self._store[weight].parts
        return not pieces or (len(pieces) == 1 and pieces[0].unit is None)

    def _fire(self, op: ops.Ffn, part: tuple[int, int], number: int, sparse: SparseFfn) -> None:
        """Find out who fires of a part of the neurons."""
        act, layer = self._space["ffn.act"], self._layer(op)
        sparse.lists.set(
            NeuronFire, sparse.lists.fire[layer, number], FIRST=part[0], LAST=part[1], ACT=act.address,
            ACT_STRIDE=act.stride,
            THRESHOLD=0.0 if sparse.gates else sparse.threshold(op),
        )  # fmt: skip
        self._emit(sparse.fire_kernel, "NeuronFire", reads=[act], writes=["neurons"])
        self._hazards.ignore_reading(act)  # of its own part: the others go on with the next one's gate
        self.result.instructions[-1].record = sparse.lists.fire[layer, number]

    def _show(self, name: str, op: ops.Ffn) -> None:
        """Let somebody see who fires."""
        if self._watched:
            self._cut(Cut(self._here(), "watch", self._layer(op), self._space[name], self._space[op.x]))

    def _here(self) -> int:
        """The number of the next instruction."""
        self._emit_pending()
        return len(self.result.instructions)

    @staticmethod
    def _layer(op: ops.Ffn) -> int:
        assert op.layer is not None
        return op.layer

    def _cut(self, cut: Cut) -> None:
        """The step stops here."""
        self.result.cuts.append(cut)

    def _neuron_rows(
        self, op: ops.Ffn, role: Role, bias: ops.Weight | None, which: np.ndarray, act: Buffer,
        sparse: SparseFfn, counter: int,
    ) -> None:  # fmt: skip
        """act *= W x + bias, for the neurons of the list `which`; of gates act = f(W x + bias). counter:
        number of the one that threads count with."""
        layout = sparse.layout
        codec = layout.codecs[role]
        weight = op.gate if role == "gate" and op.gate is not None else op.up
        source = self._quantize(self._space[op.x], op.x, None, op.rounding)
        row = ActLayout(layout.hidden)
        self._emit(
            f"neuron_rows/codec={codec},planes={self._planes_of(op.rounding)}"
            + (",rounded=1" if op.rounding else "")
            + (f",activation={op.activation}" if role == "gate" else ""),
            "NeuronRows", reads=[source, act, "neurons"], writes=[act], LIST=address(which),
            INPUT=source.address, INPUT_STRIDE=row.stride, INPUT_PRIVATE=int(source.private),
            ACT_LOW=row.low, ACT_SCALE=row.scale, ACT_FSUM=row.fsum32, UNITS=layout.hidden // UNIT,
            VECTOR=0 if role == "gate" else sparse.vector(role), WEIGHT_SCALE=layout.nbytes(role) - 4,
            ACT=act.address, ACT_STRIDE=act.stride,
            BIAS=0 if bias is None else self._vector(bias, op.neurons, 0.0),
            FACTOR=float(weight.scale), THRESHOLD=op.threshold or NO_THRESHOLD,
            NEXT=address(sparse.lists.next[counter]),
        )  # fmt: skip
        self.result.instructions[-1].cost = Cost(f"neurons_{role}")

    def _neuron_columns(self, op: ops.Ffn, hidden_name: str, add_to: str | None, sparse: SparseFfn) -> None:
        """out = W hidden + bias, of the neurons that fired; or add_to += the same."""
        layout = sparse.layout
        codec = layout.codecs["down"]
        hidden = self._space[hidden_name]
        inputs = {
            "HIDDEN": hidden.address,
            "HIDDEN_STRIDE": hidden.stride,
            "HIDDEN_PRIVATE": int(hidden.private),
        }
        if op.rounding:
            row = ActLayout(hidden.width)
            hidden = self._quantize(hidden, hidden_name, None, op.rounding)
            inputs = {"HIDDEN": hidden.address, "HIDDEN_STRIDE": row.stride, "HIDDEN_SCALE": row.scale}
            inputs["HIDDEN_PRIVATE"] = int(hidden.private)
        out = self._write(add_to or op.out, layout.hidden)
        self._emit(
            f"neuron_columns/codec={codec}" + (",rounded=1" if op.rounding else ""), "NeuronColumns",
            reads=[hidden, "neurons", *([out] if add_to else [])], writes=[out],
            LIST=address(sparse.lists.all),
            UNITS=layout.hidden // UNIT, VECTOR=sparse.vector("down"),
            ROW_SCALES=0 if codec in SCALED else self._row_scales(op, sparse),
            OUT=out.address, OUT_STRIDE=out.stride, ACCUMULATE=int(add_to is not None),
            BIAS=0 if op.down_bias is None else self._vector(op.down_bias, layout.hidden, 0.0),
            FACTOR=float(op.down.scale), NEXT=address(sparse.lists.next[COLUMNS]), **inputs,
        )  # fmt: skip
        self.result.instructions[-1].cost = Cost("neurons_down")

    def _row_scales(self, op: ops.Ffn, sparse: SparseFfn) -> int:
        """Address of the scales of down's rows, where they are not in the slots."""
        assert sparse.bundle.down_scale is not None
        scales = sparse.bundle.down_scale[self._layer(op)]
        data = aligned(align(len(scales), 16), np.float32)
        data[: len(scales)] = scales
        self.result.constants.append(data)
        return address(data)
