"""NativeExecutor: packs the weights, lowers the Program, and runs it with a team of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np

from edgellm.errors import EdgeError
from edgellm.executors.base import Executor, Session
from edgellm.executors.native.batch import AttentionMemory, Batch, Piece, steps
from edgellm.executors.native.budgeted import Needs, streamed_store
from edgellm.executors.native.buffers import Workspace
from edgellm.executors.native.describe import describe_form, input_roundings
from edgellm.executors.native.lower import Lowering
from edgellm.executors.native.neurons import CHECK_KERNEL, Cut, SparseFfn, Watch
from edgellm.executors.native.prepare import (
    ACTIVATION_PLANES,
    CHUNK,
    LOGITS_AT_ONCE,
    prepare,
)
from edgellm.executors.native.profile import OpTime, Profiler
from edgellm.executors.native.rotary import RotaryTables
from edgellm.executors.native.segments import Segments
from edgellm.executors.native.session import NativeSession
from edgellm.executors.native.streamed import StreamedStore
from edgellm.executors.native.weights import WeightStore
from edgellm.flash.counters import Counters, NeuronStats
from edgellm.flash.plan import Plan
from edgellm.flash.policies import Policy, Rows
from edgellm.flash.ring import RingStats
from edgellm.formats.checkpoint import Checkpoint
from edgellm.kernels import team
from edgellm.kernels.apart import compile_apart
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.kv_layout import KINDS
from edgellm.kernels.layout import (
    ZEROS,
    Instruction,
    State,
    Step,
    record,
)
from edgellm.kernels.memory import address, aligned
from edgellm.kernels.simd.level import Target, host_target
from edgellm.kernels.team import Team
from edgellm.program.program import Program

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


class NativeExecutor(Executor):
    """Runs a Program on this machine's CPU.

    threads: size of the team. activation_planes: 2 quantises activations to 16 bits, as two planes of
    int8; 1 to int8, which is faster in prefill and loses accuracy. kv: what sessions keep keys and values
    in, "fp16" or "int8". dram: bytes that the whole process may take, with a sequence of `context` tokens;
    weights that do not fit are read from flash for every token; of a bundle with neurons in slots, those
    that fire. policy: how these come and go. watch: shown what goes into every FFN and who fires, of a
    model that is all in memory. progress(stage, done, total) reports "compiling" and "packing".
    """

    name = "native"

    def __init__(
        self,
        program: Program,
        checkpoint: Checkpoint,
        threads: int = 1,
        progress: Progress | None = None,
        target: Target | None = None,
        activation_planes: int = ACTIVATION_PLANES,
        kv: str = "fp16",
        dram: int | None = None,
        context: int | None = None,
        policy: Policy | None = None,
        watch: Watch | None = None,
    ):
        if threads < 1:
            raise EdgeError(f"The number of threads must be at least 1, not {threads}.")
        if kv not in KINDS:
            raise EdgeError(f"There is no KV cache of kind {kv!r}; choose one of: {', '.join(KINDS)}.")
        self.program, self.threads, self.kv = program, threads, kv
        self.target = target or host_target()
        sparse = self._sparse = SparseFfn.of(checkpoint, policy)
        prepared = prepare(
            program,
            checkpoint,
            threads,
            self.target,
            activation_planes,
            kv,
            dram is None,
            sparse,
            watched=watch is not None,
        )
        packed, self._workspace, self._lowered = prepared
        self._store: WeightStore | StreamedStore = packed
        self._planes = activation_planes
        self.lock = threading.Lock()  # sessions share the activations' memory

        def report(stage: str) -> Callable[[int, int], None] | None:
            return partial(progress, stage) if progress else None

        names = [i.kernel for i in self._lowered.instructions]
        wanted = [*names, "step", *team.KERNELS, *packed.kernels, *([CHECK_KERNEL] if sparse else [])]
        if dram is not None:
            compile_apart(wanted, self.target, report("compiling"))
        kernels = load_kernels(wanted, self.target, report("compiling"))
        neuron_rows = Rows(sparse.layout.slots if sparse else 0)
        if dram is None:
            packed.pack(kernels, threads, report("packing"))
        else:
            file = packed.keep(kernels, threads, report("packing"))
            needs = Needs.of(program, context or program.context_length, self._workspace, kv)
            self._store, neuron_rows = streamed_store(program, checkpoint, packed, file, dram, needs, sparse)
            self._workspace = Workspace(self._workspace.rows, threads)
            if sparse is not None:
                sparse.split(neuron_rows.all)
            lowering = Lowering(program, self._store, self._workspace, activation_planes, kv, sparse)
            self._lowered = lowering.result
            self._store.load()
        self._team = Team(threads, self.target)
        if sparse is not None:
            sparse.open(self._team, kernels[CHECK_KERNEL], neuron_rows, self._workspace.give_back).load()
        self._step_kernel = kernels["step"]
        count = len(self._lowered.instructions)
        self._table = aligned(len(Instruction) * count, np.int64).reshape(-1, len(Instruction))
        for row, i in zip(self._table, self._lowered.instructions, strict=True):
            row[:] = kernels[i.kernel], address(i.record), i.barrier_one, i.barrier_many, i.lone, i.stops
        self._step = record(Step, COUNT=count, TABLE=address(self._table), TAIL=self._lowered.tail)
        self._barrier = aligned(16, np.int64)
        self._zero = aligned(ZEROS // 4, np.float32)
        self._attention = AttentionMemory(program, CHUNK, threads)
        rows = self._store.rows if isinstance(self._store, StreamedStore) else None
        self._batch = Batch(
            CHUNK, rows.fetch if rows else None,
            ZERO=address(self._zero), BARRIER=address(self._barrier), **self._attention.slots,
        )  # fmt: skip
        self._segments: Segments | None = None
        ring = self._store.ring if isinstance(self._store, StreamedStore) else None
        self._watch = watch
        if ring is not None or sparse is not None or watch is not None:
            self._segments = Segments(
                self._lowered, self._table, ring, self._team, self._step_kernel, self._meet,
                sparse.mend if sparse else None,
            )  # fmt: skip
        self._profiler: Profiler | None = None
        self._rotary = RotaryTables(self._lowered.ropes)

    @property
    def simd(self) -> str:
        return self.target.level

    @property
    def weights_bytes(self) -> int:
        """Bytes of the packed weights, and of the neurons in slots."""
        return self._store.nbytes + (self._sparse.layout.file_bytes if self._sparse else 0)

    @property
    def weights_source(self) -> str:
        """One phrase: where the packed weights in memory come from."""
        return self._store.source

    @property
    def streamed(self) -> StreamedStore | None:
        """The weights, if they are held to a budget."""
        return self._store if isinstance(self._store, StreamedStore) else None

    def plan(self) -> Plan | None:
        """What the memory of the budget goes to; None without one."""
        store = self.streamed
        if store is None:
            return None
        sparse = self._sparse
        neurons = sparse.plan(sparse.neurons.rows) if sparse and sparse.neurons else None
        return Plan(store.budget, store.residency, neurons)

    def flash_counters(self) -> Counters | None:
        """What was read and how long it took, since the executor was made; None without a budget."""
        store = self.streamed
        if store is None:
            return None
        ring = store.ring.stats if store.ring else RingStats()
        neurons = self._sparse.stats if self._sparse else NeuronStats()
        rows = store.rows
        computed = self._segments.compute_seconds if self._segments else 0.0
        return Counters(
            bytes=ring.bytes + neurons.bytes + (rows.bytes_read if rows else 0),
            reads=ring.reads + neurons.reads + (rows.reads if rows else 0),
            wait_seconds=ring.wait_seconds + neurons.wait_seconds,
            compute_seconds=computed - neurons.kernel_seconds,
            needed=neurons.needed, missed=neurons.missed,
        )  # fmt: skip

    def new_session(self, context: int) -> NativeSession:
        with self.lock:  # a running session reads the tables that may have to grow
            self._rotary.reserve(context)
        return NativeSession(self, context)

    def close(self) -> None:
        self._team.close()
        if self._sparse is not None:
            self._sparse.close()

    def describe(self) -> dict[str, str]:
        """Weight name -> layout and instruction set of the kernel that runs it."""
        roundings = input_roundings(self.program)
        return {
            str(weight): describe_form(form, self.target, self._planes, roundings.get(weight))
            for weight, form in self._store.forms.items()
        }

    def profile(self, session: Session, tokens: Sequence[int] | np.ndarray) -> list[OpTime]:
        """Consume tokens in a session of this executor, as `session.forward` does, and tell where the time
        went. Raises EdgeError as `forward` does. Nobody else may use the executor meanwhile."""
        return self._profiled(lambda: session.forward(tokens))

    def profile_batch(self, sessions: Sequence[Session], tokens: Sequence[int]) -> list[OpTime]:
        """The same of one token in each of several sessions, as `decode_batch` consumes them."""
        return self._profiled(lambda: self.decode_batch(sessions, tokens))

    def _profiled(self, call: Callable[[], object]) -> list[OpTime]:
        if self._segments is not None:
            raise EdgeError("Steps that stop for weights or neurons from flash cannot be profiled by op.")
        profiler = Profiler(self._lowered, self._step, self.threads, self.target)
        self._profiler = profiler
        try:
            call()
        finally:
            self._profiler = None
        return profiler.result()

    # -- used by sessions --------------------------------------------------------------------------

    def run(self, work: Sequence[tuple[NativeSession, np.ndarray]], all_logits: bool) -> np.ndarray:
        """Consume tokens of several sequences, without moving the sessions' positions.

        Returns float32 logits, a row for each sequence's last token or for all tokens, in their order.
        """
        budgeted = isinstance(self._store, StreamedStore)
        todo = list(steps(work, LOGITS_AT_ONCE if all_logits and budgeted else CHUNK))
        with self.lock:
            try:
                if len(todo) > 1 and self._segments is not None and self._segments.shared:
                    results = self._run_by_group(todo, all_logits, self._segments)
                else:
                    results = [self._run_step(pieces, all_logits) for pieces in todo]
            except BaseException:
                if self._segments is not None:
                    self._segments.restart()  # whatever was read and not used
                if self._sparse is not None:
                    self._sparse.restart()
                raise
        return results[0] if len(results) == 1 else np.concatenate(results)

    # -- parts -------------------------------------------------------------------------------------

    def _run_step(self, pieces: list[Piece], all_logits: bool) -> np.ndarray:
        state, rows = self._fill(pieces, all_logits)
        if self._sparse is not None:
            self._sparse.begin(many=state[State.TOKENS] > 1)
        if self._segments is not None:
            self._segments.run(state, rows)
        elif self._profiler is not None:
            self._profiler.run(self._team, address(state), pieces, rows)
        else:
            self._team.run(self._step_kernel, address(self._step), address(state))
        return self._logits(rows)

    def _run_by_group(
        self, todo: list[list[Piece]], all_logits: bool, segments: Segments
    ) -> list[np.ndarray]:
        """Several steps that share the reads of each group of instructions."""
        if self._sparse is not None:
            self._sparse.begin(many=True)
        held: list[list[np.ndarray]] = [[] for _ in todo]  # of each step, what its last group leaves
        groups, tail, results = self._lowered.groups, self._lowered.tail, []
        following = [*(group.live for group in groups[1:]), ()]
        for number, (group, end) in enumerate(zip(groups, self._lowered.ends, strict=True)):
            with segments.held(number) as run:
                for i, pieces in enumerate(todo):
                    state, wanted = self._fill(pieces, all_logits, look_up=number == 0)
                    if wanted == 0 and group.first >= tail:
                        continue
                    for buffer, rows in zip(group.live, held[i], strict=True):
                        self._workspace.array(buffer, len(rows))[:] = rows
                    run(state, wanted)
                    count = wanted if end > tail else sum(len(piece.ids) for piece in pieces)
                    held[i] = [self._workspace.array(buffer, count).copy() for buffer in following[number]]
                    if number + 1 == len(groups):
                        results.append(self._logits(wanted))
        return results

    def _fill(self, pieces: list[Piece], all_logits: bool, look_up: bool = True) -> tuple[np.ndarray, int]:
        """The State of a step, and its rows of logits. look_up: as of Batch.fill."""
        found = self._batch.fill(pieces, all_logits, look_up)
        self._rotary.fill(max(piece.position + len(piece.ids) for piece in pieces) - 1)
        return found

    def _meet(self, cut: Cut, rows: int) -> None:
        if cut.kind == "watch":
            assert self._watch is not None
            assert cut.inputs is not None
            assert cut.buffer is not None
            inputs, gates = (self._workspace.array(b, rows) for b in (cut.inputs, cut.buffer))
            self._watch(cut.layer, inputs, gates)
        else:
            assert self._sparse is not None
            self._sparse.meet(cut, rows)

    def _logits(self, rows: int) -> np.ndarray:
        return self._workspace.array(self._workspace["logits"], rows).copy()

    def _forward_batch(self, sessions: Sequence[Session], ids: Sequence[np.ndarray]) -> np.ndarray:
        own = cast("Sequence[NativeSession]", sessions)
        return self.run(list(zip(own, ids, strict=True)), all_logits=False)
