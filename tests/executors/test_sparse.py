"""Bundles whose neurons come from flash give what the model in memory gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.executors.native import NativeExecutor, neurons
from edgellm.executors.native.neurons import SparseFfn
from edgellm.executors.native.session import NativeSession
from edgellm.flash.counters import NeuronStats
from edgellm.flash.neurons import OVERFLOWS, Neurons
from edgellm.flash.policies import POLICIES, Policy, Rows
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.edge_pack import pack
from edgellm.kernels.layout import Counts, NeuronQueue
from edgellm.models import build_program
from tests.executors.slots import keep_slots
from tools.synthetic.shapes import SHAPES
from tools.synthetic.write import write

PROMPT = np.random.default_rng(3).integers(300, 500, 40)
CONTEXT = 400
DEPTH = 6  # of a ring that soon has no room


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with ReLU and random weights, and its bundle."""
    found: Path = tmp_path_factory.mktemp("sparse")
    write(found / "relu.gguf", SHAPES["tiny"], name="tiny", seed=1)
    pack(open_checkpoint(found / "relu.gguf"), found / "relu.edge", mode="sparse-exact")
    return found


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory, shipped: Path) -> Path:
    """The bundle of the model that ships."""
    found: Path = tmp_path_factory.mktemp("ternary") / "tiny.edge"
    pack(open_checkpoint(shipped), found, mode="sparse-exact")
    return found


@pytest.fixture
def capacity(monkeypatch: pytest.MonkeyPatch):
    """capacity(n, lent): as of keep_slots."""
    return partial(keep_slots, monkeypatch)


def greedy(
    path: Path, count: int, threads: int = 2, policy: Policy | None = None, prompt: np.ndarray = PROMPT
) -> tuple[np.ndarray, NeuronStats | None]:
    """Logits of the prompt's last token and of `count` greedy ones."""
    checkpoint = open_checkpoint(path)
    executor = NativeExecutor(build_program(checkpoint, CONTEXT), checkpoint, threads, policy=policy)
    try:
        session = executor.new_session(CONTEXT)
        logits = [session.prefill(prompt)]
        for _ in range(count):
            logits.append(session.decode(int(logits[-1].argmax())))
        return np.array(logits), executor._sparse.stats if executor._sparse else None
    finally:
        executor.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("slots", [0, 20, 94])
def test_a_ternary_model_is_the_same_to_the_last_bit(
    ternary: Path, shipped: Path, capacity, threads: int, slots: int
) -> None:
    expected, _ = greedy(shipped, 24, threads)
    capacity(slots)
    found, stats = greedy(ternary, 24, threads)
    assert (found == expected).all()
    assert stats is not None
    assert (stats.missed > 0) == (slots < 94)


def test_256_tokens_are_those_of_the_model_in_memory(ternary: Path, shipped: Path, capacity) -> None:
    expected, _ = greedy(shipped, 256)
    capacity(40)
    for threads in (1, 2):
        found, _ = greedy(ternary, 256, threads)
        assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("rung", [*POLICIES, "window of 2"])
def test_what_stays_in_memory_changes_no_bit(folder: Path, capacity, rung: str) -> None:
    everything, stats = greedy(folder / "relu.edge", 20)
    assert stats is not None
    assert stats.missed == 0
    capacity(0 if rung == "naive" else 150)
    policy = POLICIES.get(rung, Policy(window=2))
    found, some = greedy(folder / "relu.edge", 20, 1, policy)
    assert (found == everything).all()
    assert some is not None
    assert some.missed > 0
    assert some.needed == stats.needed


def test_it_is_near_the_dense_model(folder: Path) -> None:
    dense, _ = greedy(folder / "relu.gguf", 20)
    sparse, _ = greedy(folder / "relu.edge", 20)
    assert np.abs(dense - sparse).max() < 2e-3 * np.abs(dense).max()
    assert (dense.argmax(1) == sparse.argmax(1)).all()


def test_long_prompts_and_batches(ternary: Path, shipped: Path, capacity) -> None:
    capacity(30)
    prompt = np.random.default_rng(4).integers(300, 4000, 300)  # two steps
    results = []
    for path in (shipped, ternary):
        checkpoint = open_checkpoint(path)
        executor = NativeExecutor(build_program(checkpoint, CONTEXT), checkpoint, 2)
        sessions = [executor.new_session(CONTEXT) for _ in range(3)]
        rows = [session.prefill(prompt[i:]) for i, session in enumerate(sessions)]
        rows.append(executor.decode_batch(sessions, [5, 6, 7]))
        rows.append(sessions[0].forward(prompt[:20], all_logits=True))
        executor.close()
        results.append(np.concatenate([np.atleast_2d(row) for row in rows]))
    assert (results[0] == results[1]).all()


def test_a_flipped_byte_is_named_on_first_touch(folder: Path, tmp_path: Path, capacity) -> None:
    bundle = tmp_path / "bad.edge"
    shutil.copytree(folder / "relu.edge", bundle)
    checkpoint = open_checkpoint(bundle)
    assert checkpoint.bundle is not None
    layout = checkpoint.bundle.layout
    assert layout is not None
    with (bundle / "ffn.bin").open("r+b") as file:
        for neuron in range(layout.neurons):  # whoever fires
            at = layout.layer_offset(2) + neuron // layout.per_slot * layout.stride + 100
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 16]))
    capacity(0)
    with pytest.raises(EdgeError, match=r"ffn\.bin: layer 2, neuron \d+ is not what was packed"):
        greedy(bundle, 20)


def test_a_model_that_fits_checks_every_neuron(folder: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bad.edge"
    shutil.copytree(folder / "relu.edge", bundle)
    size = (bundle / "ffn.bin").stat().st_size
    with (bundle / "ffn.bin").open("r+b") as file:
        file.seek(size - 8)
        file.write(b"\x55")
    with pytest.raises(EdgeError, match="checksum"):
        greedy(bundle, 1)


def test_reading_ahead_changes_no_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget and many neurons the gate is computed in parts, and the next layer's is looked at."""
    from edgellm.executors.native import budgeted, packed_file

    monkeypatch.setenv("EDGELLM_PACKED", "on")
    monkeypatch.setattr(packed_file, "pack_path", lambda path: tmp_path / "a.edgepack")
    monkeypatch.setattr(neurons, "LEAST_TO_SPLIT", 0)
    monkeypatch.setattr(SparseFfn, "rows", lambda self, nbytes, prompts: Rows(40, 20))
    monkeypatch.setattr(budgeted, "resident_bytes", lambda: 0)
    expected, _ = greedy(folder / "relu.edge", 20)
    checkpoint = open_checkpoint(folder / "relu.edge")
    executor = NativeExecutor(
        build_program(checkpoint, CONTEXT), checkpoint, 2, dram=1 << 30, context=CONTEXT
    )
    assert executor._sparse is not None
    assert len(executor._sparse.parts) == 3
    lists = executor._sparse.lists
    session = executor.new_session(CONTEXT)
    logits = [session.prefill(PROMPT)]
    for _ in range(20):
        logits.append(session.decode(int(logits[-1].argmax())))
    executor.close()
    assert (np.array(logits) == expected).all()
    assert executor._sparse.stats.missed > 0
    assert lists.held.tolist() == [2, 3]  # of four layers, the last ones that were read ahead
    assert (lists.ahead[:, 0] > 0).all()


@pytest.mark.parametrize("lent", [30, 300])
@pytest.mark.parametrize("room", [1, 16, 1000])
def test_memory_of_prompts_is_lent(
    folder: Path, capacity, monkeypatch: pytest.MonkeyPatch, lent: int, room: int
) -> None:
    """Prompts take it back; so do tokens that miss more than there is room for, a `room`th of a layer."""

    def several() -> tuple[np.ndarray, list[int], NeuronStats]:
        checkpoint = open_checkpoint(folder / "relu.edge")
        executor = NativeExecutor(build_program(checkpoint, CONTEXT), checkpoint, 2)
        session, used = executor.new_session(CONTEXT), []
        assert executor._sparse is not None
        assert executor._sparse.neurons is not None
        favourites = executor._sparse.neurons.favourites
        found = [session.decode(5)]
        for count in (3, 30):
            found.append(session.prefill(PROMPT[:count]))
            used.append(int(favourites.used.max()))
            for _ in range(12):
                found.append(session.decode(int(found[-1].argmax())))
            used.append(int(favourites.used.min()))
        executor.close()
        return np.array(found), used, executor._sparse.stats

    expected, _, stats = several()
    capacity(100, lent)
    monkeypatch.setattr("edgellm.flash.neurons.AREA_SHARE", room)
    mend, mended = Neurons.mend, []

    def noted(self: Neurons) -> None:
        mended.append(int(self.lists.counts[Counts.LAYER]))
        mend(self)
        assert (self.favourites.used <= 100).sum() >= 3  # of four layers
        assert not self._lending

    monkeypatch.setattr(Neurons, "mend", noted)
    found, used, some = several()
    assert (found == expected).all()
    assert some.needed == stats.needed
    assert some.missed > 0
    assert used[0] == used[2] == 100
    if room == 1:
        assert min(used[1], used[3]) > 100
    elif room == 1000:
        assert used[3] == 100
    # Of four layers each, then it is not tried again.
    assert len(mended) in {1: [0], 16: range(1, 4 * OVERFLOWS + 1), 1000: [4 * OVERFLOWS]}[room]


def test_without_io_uring_the_same_comes_out(folder: Path, capacity, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = greedy(folder / "relu.edge", 20)
    monkeypatch.setattr(SparseFfn, "_own_ring", lambda self: None)
    capacity(150)
    found, stats = greedy(folder / "relu.edge", 20)
    assert (found == expected).all()
    assert stats is not None
    assert stats.missed > 0


@pytest.fixture
def cut_short(folder: Path, tmp_path: Path):
    """cut_short(executor): its kernels read from a file that lacks the last half, Python from the whole."""
    file = (tmp_path / "half.bin").open("w+b")
    whole = (folder / "relu.edge" / "ffn.bin").read_bytes()
    file.write(whole[: len(whole) // 2 // 4096 * 4096 + 512])
    file.flush()

    def cut(executor: NativeExecutor) -> None:
        assert executor._sparse is not None
        lists = executor._sparse.lists
        assert lists.queue[NeuronQueue.RING]
        lists.set(NeuronQueue, lists.queue, FILE=file.fileno())

    yield cut
    file.close()


def test_reads_that_come_short_or_find_no_room_are_made_again(
    folder: Path, capacity, cut_short, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = greedy(folder / "relu.edge", 20)
    capacity(100)
    mend, mended = Neurons.mend, []

    def noted(self: Neurons) -> None:
        mended.append(int(self.lists.failed[0]))
        mend(self)

    monkeypatch.setattr(Neurons, "mend", noted)
    monkeypatch.setattr(neurons, "RING_DEPTH", DEPTH)
    checkpoint = open_checkpoint(folder / "relu.edge")
    executor = NativeExecutor(build_program(checkpoint, CONTEXT), checkpoint, 2)
    cut_short(executor)
    session = executor.new_session(CONTEXT)
    found = [session.prefill(PROMPT)]
    for _ in range(20):
        found.append(session.decode(int(found[-1].argmax())))
    executor.close()
    assert (np.array(found) == expected).all()
    assert len(mended) > 20
    assert min(mended) > 0


def interrupted(method: Callable[..., None]) -> Callable[..., None]:
    """The same, but for its seventh call."""
    calls: list[int] = []

    def call(self: Neurons, *rest: bool, **named: bool) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        method(self, *rest, **named)

    return call


def several(session: NativeSession, count: int) -> None:
    for _ in range(count):
        session.decode(5)


@pytest.mark.parametrize("policy", [None, Policy(window=2), POLICIES["bundle"]])
@pytest.mark.parametrize("slots", [60, 1024])
def test_a_step_that_broke_off_does_no_harm(
    folder: Path, capacity, cut_short, monkeypatch: pytest.MonkeyPatch, policy: Policy | None, slots: int
) -> None:
    """Prompts again, with every neuron in memory too: a window lets go even of those."""
    expected, _ = greedy(folder / "relu.edge", 8)
    capacity(slots)
    checkpoint = open_checkpoint(folder / "relu.edge")
    executor = NativeExecutor(build_program(checkpoint, CONTEXT), checkpoint, 2, policy=policy)
    if policy is None:  # its steps stop only for reads that went wrong
        cut_short(executor)
    session = executor.new_session(CONTEXT)
    session.prefill(PROMPT)
    with monkeypatch.context() as patched:
        for name in ("arrive", "mend", "begin"):
            patched.setattr(Neurons, name, interrupted(getattr(Neurons, name)))
        with pytest.raises(KeyboardInterrupt):
            several(session, 8)
    for _ in range(2):
        session.rewind(0)
        found = [session.prefill(PROMPT)]
        for _ in range(8):
            found.append(session.decode(int(found[-1].argmax())))
        assert (np.array(found) == expected).all()
    assert executor._sparse is not None
    held = executor._sparse.neurons
    assert held is not None
    if held.stats.missed:  # what is read for a prompt has a place
        assert held._staging.nbytes >= held.layout.layer_bytes
    assert (held.stats.missed > 0) == (slots == 60 or policy == Policy(window=2))
    executor.close()
