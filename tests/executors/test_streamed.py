"""Weights from flash give the same logits, to the last bit, as weights in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import EdgeError
from edgellm.executors.native import NativeExecutor, budgeted, packed_file
from edgellm.flash.residency import Residency
from edgellm.formats.checkpoint import Checkpoint, open_checkpoint
from edgellm.models import build_program
from tools.random_model.shapes import Shape
from tools.random_model.write import write

CONTEXT = 800
TOKENS = np.random.default_rng(5).integers(0, 2048, 700)  # three steps of prefill
MODELS = {
    "llama": (Shape(4, 512, 1024, 8, 2, 64, 2048, CONTEXT), "Q4_0", "Q8_0"),
    "tied": (Shape(4, 512, 1024, 8, 2, 64, 2048, CONTEXT, tied=True), "Q4_1", "F16"),
    "ternary": (Shape(4, 512, 1024, 8, 8, 64, 2048, CONTEXT, tied=True, bitnet=True), "TQ2_0", "Q8_0"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("models")
    for name, (shape, kind, outer) in MODELS.items():
        write(found / f"{name}.gguf", shape, kind, outer=outer)
    return found


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of the test's own that keeps packed weights."""
    monkeypatch.setenv("EDGELLM_PACKED", "on")
    monkeypatch.setattr(packed_file, "pack_path", lambda path: tmp_path / "a.edgepack")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, packs: None) -> Callable[[float], list[Residency]]:
    """held(share): from now on so much of the weights fits in memory. Returns the plans that follow."""
    plan, plans = budgeted.plan_residency, []

    def fix(share: float) -> list[Residency]:
        def planned(matrices, budget):
            plans.append(plan(matrices, int(share * sum(m.nbytes for m in matrices))))
            return plans[-1]

        monkeypatch.setattr(budgeted, "plan_residency", planned)
        return plans

    return fix


def opened(path: Path, threads: int, dram: int | None) -> tuple[NativeExecutor, Checkpoint]:
    checkpoint = open_checkpoint(path)
    program = build_program(checkpoint, CONTEXT)
    return NativeExecutor(program, checkpoint, threads=threads, dram=dram, context=CONTEXT), checkpoint


def told(path: Path, threads: int, dram: int | None) -> list[np.ndarray]:
    """Logits of a long prompt, of 5 tokens behind it, of all tokens of a text, and of a batch."""
    executor, _ = opened(path, threads, dram)
    try:
        session = executor.new_session(CONTEXT)
        found = [session.forward(TOKENS)]
        found += [session.decode(int(token)) for token in TOKENS[:5]]
        other = executor.new_session(CONTEXT)
        found.append(other.forward(TOKENS[100:400], all_logits=True))
        found.append(executor.forward_batch([session, other], [TOKENS[:20], TOKENS[:300]]))
        return found
    finally:
        executor.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_logits_are_those_of_the_resident_model(folder, held, name, threads, share) -> None:
    expected = told(folder / f"{name}.gguf", threads, None)
    plans = held(share)
    found = told(folder / f"{name}.gguf", threads, 1 << 40)
    assert plans[0].streamed_bytes > 0
    assert plans[0].memory_bytes <= share * (plans[0].pinned_bytes + plans[0].streamed_bytes)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_steps_share_a_read(tmp_path, held) -> None:
    path = tmp_path / "many.gguf"
    write(path, Shape(16, 256, 1024, 4, 4, 64, 512, CONTEXT), "Q4_0")
    held(0.8)
    executor, _ = opened(path, 1, 1 << 40)
    store = executor.streamed
    assert store is not None
    assert store.ring is not None
    assert store.residency.whole_groups
    before = store.ring.stats.bytes
    executor.new_session(CONTEXT).forward(TOKENS % 512)
    read = store.ring.stats.bytes - before
    assert read < 1.5 * store.residency.streamed_bytes  # and the next step's have begun
    executor.close()


def test_a_step_that_broke_off_leaves_the_next_one_right(folder, held, monkeypatch) -> None:
    expected = told(folder / "llama.gguf", 1, None)[0]
    held(0.5)
    executor, _ = opened(folder / "llama.gguf", 1, 1 << 40)
    store = executor.streamed
    assert store is not None
    assert store.ring is not None
    session, wait, left = executor.new_session(CONTEXT), store.ring.wait, [7]

    def broken() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise EdgeError("the flash is gone")
        wait()

    monkeypatch.setattr(store.ring, "wait", broken)
    with pytest.raises(EdgeError, match="the flash is gone"):
        session.forward(TOKENS)
    monkeypatch.undo()
    np.testing.assert_array_equal(session.forward(TOKENS), expected)
    executor.close()


def test_a_budget_that_is_too_small_names_one_that_is_not(folder, packs) -> None:
    path = folder / "llama.gguf"
    with pytest.raises(EdgeError, match=r"llama\.gguf does not run in 1 MiB") as caught:
        opened(path, 1, 1 << 20)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    executor, _ = opened(path, 1, (least + 2) << 20)  # what the process holds may have grown since
    executor.close()


def test_without_a_file_of_packed_weights_there_is_nothing_to_read(folder) -> None:
    with pytest.raises(EdgeError, match="none is kept \\(EDGELLM_PACKED=off\\)"):
        opened(folder / "llama.gguf", 1, 1 << 30)
