"""NativeExecutor: packs the weights, lowers the Program, and runs it with a team of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np

from edgellm.errors import EdgeError
from edgellm.executors.base import Executor, Session
from edgellm.executors.native.buffers import Workspace
from edgellm.executors.native.lower import Lowering, kv_bytes_before
from edgellm.executors.native.packing import form_of
from edgellm.executors.native.weights import WeightStore
from edgellm.formats.checkpoint import Checkpoint
from edgellm.kernels import team
from edgellm.kernels.compile import load_kernels
from edgellm.kernels.layout import (
    GROUP,
    Instruction,
    Rope,
    State,
    Step,
    TileLayout,
    align,
    record,
    scratch_bytes,
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
    int8; 1 to int8, which is faster in prefill and loses accuracy. progress(stage, done, total) reports
    "compiling" and "packing".
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
    ):
        if threads < 1:
            raise EdgeError(f"The number of threads must be at least 1, not {threads}.")
        self.program, self.threads = program, threads
        self.target = target or host_target()
        self._store = WeightStore(checkpoint, *_weights(program))
        self._workspace = Workspace(max(align(CHUNK, GROUP), threads))
        self._planes = activation_planes
        self.lock = threading.Lock()  # sessions share the activations' memory

        def report(stage: str) -> Callable[[int, int], None] | None:
            return partial(progress, stage) if progress else None

        self._lowered = Lowering(program, self._store, self._workspace, activation_planes).result
        names = [i.kernel for i in self._lowered.instructions]
        wanted = [*names, "step", *team.KERNELS, *self._store.kernels]
        kernels = load_kernels(wanted, self.target, report("compiling"))
        self._store.pack(kernels, threads, report("packing"))
        self._team = Team(threads, self.target)
        self._step_kernel = kernels["step"]
        self._table = aligned(len(Instruction) * len(names), np.int64).reshape(-1, len(Instruction))
        for row, i in zip(self._table, self._lowered.instructions, strict=True):
            row[:] = kernels[i.kernel], address(i.record), i.barrier_one, i.barrier_many
        self._step = record(Step, COUNT=len(names), TABLE=address(self._table))
        self._barrier = aligned(16, np.int64)
        self._zero = aligned(16, np.float32)
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
        forms = self._store.forms.items()
        return {str(weight): describe_form(form, self.target, self._planes) for weight, form in forms}

    # -- used by sessions --------------------------------------------------------------------------

    def run(self, state: np.ndarray, last_position: int) -> None:
        self._fill_rope(last_position)
        state[State.ZERO], state[State.BARRIER] = address(self._zero), address(self._barrier)
        self._team.run(self._step_kernel, address(self._step), address(state))

    def logits(self, rows: int) -> np.ndarray:
        """(rows, vocab) view of the results of the last run."""
        return self._workspace.array(self._workspace["logits"], rows)

    # -- parts -------------------------------------------------------------------------------------

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


class NativeSession(Session):
    """One sequence of the native executor, its KV cache a virtual reservation for the whole context."""

    def __init__(self, executor: NativeExecutor, context: int):
        super().__init__(context, executor.program.vocab_size)
        self._executor = executor
        padded = align(context, 16)
        self._per_position = kv_bytes_before(executor.program)[-1]
        self._cache = reserve(padded * self._per_position + 64, huge_pages=False, what="the KV cache")
        head_dim = max((slot.head_dim for slot in executor.program.kv_slots), default=16)
        each = align(scratch_bytes(padded, head_dim))
        self._scratch = reserve(each * executor.threads, huge_pages=False, what="attention scores")
        self._state = record(
            State, KV=address(self._cache), CONTEXT=padded, SCRATCH=address(self._scratch), SCRATCH_BYTES=each
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache that hold positions consumed so far."""
        return self.position * self._per_position

    def _forward(self, tokens: np.ndarray, all_logits: bool) -> np.ndarray:
        results: list[np.ndarray] = []
        for first in range(0, len(tokens), CHUNK):
            ids = np.ascontiguousarray(tokens[first : first + CHUNK])
            position = self.position + first
            self._state[State.TOKENS], self._state[State.POSITION] = len(ids), position
            self._state[State.ALL_LOGITS], self._state[State.IDS] = int(all_logits), address(ids)
            with self._executor.lock:
                self._executor.run(self._state, position + len(ids) - 1)
                chunk = self._executor.logits(len(ids) if all_logits else 1).copy()
            results = [*results, chunk] if all_logits else [chunk]
        return np.concatenate(results) if all_logits else results[-1][0]


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


def describe_form(form: TileLayout | str, target: Target, planes: int = ACTIVATION_PLANES) -> str:
    """One phrase for `inspect`."""
    if not isinstance(form, TileLayout):
        return f"tile16 {form}, float32 activations ({target.level})"
    minimum = " with minimum" if form.asym else ""
    scales = f"{form.bits}-bit{minimum}, scale per {form.block}"
    return f"tile16x4 {scales}, activations in {planes} int8 plane{'s' * (planes > 1)} ({target.level})"


def describe_tensor(type_name: str, inputs: int, target: Target) -> str:
    """As describe_form, for a tensor of which nothing is loaded. Raises EdgeError where it cannot be run."""
    return describe_form(form_of(type_name, inputs), target)
