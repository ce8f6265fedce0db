"""NativeExecutor: packs the weights, lowers the Program, and runs it with a team of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np

from edgellm.errors import EdgeError
from edgellm.executors.base import Executor, Session
from edgellm.executors.native import choice
from edgellm.executors.native.batch import AttentionMemory, Batch, steps
from edgellm.executors.native.buffers import Workspace
from edgellm.executors.native.describe import describe_form, input_roundings
from edgellm.executors.native.lower import Lowering
from edgellm.executors.native.packing import TERNARY, matrix_shape
from edgellm.executors.native.profile import OpTime, Profiler
from edgellm.executors.native.session import NativeSession
from edgellm.executors.native.weights import WeightStore
from edgellm.formats.checkpoint import Checkpoint
from edgellm.kernels import team
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.kv_layout import KINDS
from edgellm.kernels.layout import (
    GROUP,
    ZEROS,
    Instruction,
    Rope,
    Step,
    align,
    record,
)
from edgellm.kernels.memory import address, aligned, reserve
from edgellm.kernels.simd.level import Target, host_target
from edgellm.kernels.team import Team
from edgellm.program import access, ops
from edgellm.program.program import Program

CHUNK = 256  # tokens that go through the Program at once in prefill
ACTIVATION_PLANES = 2  # docs/decisions/0002
Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


class NativeExecutor(Executor):
    """Runs a Program on this machine's CPU.

    threads: size of the team. activation_planes: 2 quantises activations to 16 bits, as two planes of
    int8; 1 to int8, which is faster in prefill and loses accuracy. kv: what sessions keep keys and values
    in, "fp16" or "int8". progress(stage, done, total) reports "compiling" and "packing".
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
    ):
        if threads < 1:
            raise EdgeError(f"The number of threads must be at least 1, not {threads}.")
        if kv not in KINDS:
            raise EdgeError(f"There is no KV cache of kind {kv!r}; choose one of: {', '.join(KINDS)}.")
        self.program, self.threads, self.kv = program, threads, kv
        self.target = target or host_target()
        matrices, vectors = _weights(program)
        base3 = _in_base3(program, checkpoint, matrices, self.target)
        self._store = WeightStore(checkpoint, matrices, vectors, base3=base3)
        self._workspace = Workspace(max(align(CHUNK, GROUP) + GROUP, threads))
        self._planes = activation_planes
        self.lock = threading.Lock()  # sessions share the activations' memory

        def report(stage: str) -> Callable[[int, int], None] | None:
            return partial(progress, stage) if progress else None

        self._lowered = Lowering(program, self._store, self._workspace, activation_planes, kv).result
        names = [i.kernel for i in self._lowered.instructions]
        wanted = [*names, "step", *team.KERNELS, *self._store.kernels]
        kernels = load_kernels(wanted, self.target, report("compiling"))
        self._store.pack(kernels, threads, report("packing"))
        self._team = Team(threads, self.target)
        self._step_kernel = kernels["step"]
        self._table = aligned(len(Instruction) * len(names), np.int64).reshape(-1, len(Instruction))
        for row, i in zip(self._table, self._lowered.instructions, strict=True):
            row[:] = kernels[i.kernel], address(i.record), i.barrier_one, i.barrier_many
        self._step = record(Step, COUNT=len(names), TABLE=address(self._table), TAIL=self._lowered.tail)
        self._barrier = aligned(16, np.int64)
        self._zero = aligned(ZEROS // 4, np.float32)
        self._attention = AttentionMemory(program, CHUNK, threads)
        self._batch = Batch(
            CHUNK, ZERO=address(self._zero), BARRIER=address(self._barrier), **self._attention.slots
        )
        self._profiler: Profiler | None = None
        self._rope_tables: list[np.ndarray] = []
        self._rope_filled = 0

    @property
    def simd(self) -> str:
        return self.target.level

    @property
    def weights_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._store.nbytes

    @property
    def weights_source(self) -> str:
        """One phrase: where the packed weights in memory come from."""
        return self._store.source

    def new_session(self, context: int) -> NativeSession:
        with self.lock:  # a running session reads the tables that may have to grow
            self._reserve_rope(context)
        return NativeSession(self, context)

    def close(self) -> None:
        self._team.close()

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
        results = []
        for pieces in steps(work, CHUNK):
            with self.lock:
                state, rows = self._batch.fill(pieces, all_logits)
                self._fill_rope(max(piece.position + len(piece.ids) for piece in pieces) - 1)
                if self._profiler is None:
                    self._team.run(self._step_kernel, address(self._step), state)
                else:
                    self._profiler.run(self._team, state, pieces, rows)
                results.append(self._workspace.array(self._workspace["logits"], rows).copy())
        return results[0] if len(results) == 1 else np.concatenate(results)

    # -- parts -------------------------------------------------------------------------------------

    def _forward_batch(self, sessions: Sequence[Session], ids: Sequence[np.ndarray]) -> np.ndarray:
        own = cast("Sequence[NativeSession]", sessions)
        return self.run(list(zip(own, ids, strict=True)), all_logits=False)

    def _reserve_rope(self, context: int) -> None:
        """Tables of cosines and sines for `context` positions; they are filled as positions come up."""
        if self._rope_tables and len(self._rope_tables[0]) >= context:
            return
        self._rope_tables = []
        self._rope_filled = 0
        for op, args in self._lowered.ropes:
            half = len(op.inv_freq)
            memory = reserve(context * 8 * half, huge_pages=False, what="the rotary embedding table")
            self._rope_tables.append(memory.view(np.float32).reshape(context, 2, half))
            args[Rope.TABLE] = address(memory)

    def _fill_rope(self, last_position: int) -> None:
        if last_position < self._rope_filled or not self._rope_tables:
            return
        first = self._rope_filled
        end = min(max(2 * first, last_position + 1, 512), len(self._rope_tables[0]))
        for (op, _), table in zip(self._lowered.ropes, self._rope_tables, strict=True):
            angles = np.arange(first, end, dtype=np.float64)[:, None] * op.inv_freq.astype(np.float64)
            table[first:end, 0] = np.cos(angles) * op.magnitude
            table[first:end, 1] = np.sin(angles) * op.magnitude
        self._rope_filled = end


def _weights(program: Program) -> tuple[list[ops.Weight], list[ops.Weight]]:
    """The matrices of all linears and embedding tables, and the vectors; in order of use, each once."""
    matrices: list[ops.Weight] = []
    vectors: list[ops.Weight] = []
    for op in program.ops:
        for name, weight in access.weights(op).items():
            matrix = name in ("table", "gate", "up", "down") or (
                name == "weight" and isinstance(op, (ops.Linear, ops.Logits))
            )
            (matrices if matrix else vectors).append(weight)
    return list(dict.fromkeys(matrices)), list(dict.fromkeys(vectors))


def _in_base3(
    program: Program, checkpoint: Checkpoint, matrices: Sequence[ops.Weight], target: Target
) -> list[ops.Weight]:
    """The ternary matrices that are faster in base 3; shapes that this machine does not know are measured."""
    tables = {op.table for op in program.ops if isinstance(op, ops.Embed)}
    shapes = {
        weight: matrix_shape(weight, checkpoint.tensors[weight.name])
        for weight in matrices
        if weight not in tables and checkpoint.tensors[weight.name].type in TERNARY
    }
    choice.measure(set(shapes.values()), target)
    return [weight for weight, shape in shapes.items() if choice.base3_is_faster(shape, target)]
