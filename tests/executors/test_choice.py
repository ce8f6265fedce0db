"""The layout of ternary matrices: measured once, remembered, and only where there is something to choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm.executors.native import choice
from edgellm.executors.native.choice import base3_is_faster, known, measure
from edgellm.kernels.simd.level import Target, host_target, target_for

TRIPLE = "x86_64-unknown-linux-gnu"


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """This host's, with a folder of its own for what is measured."""
    monkeypatch.setattr(choice, "kernel_folder", lambda _: tmp_path / "kernels")
    monkeypatch.setattr(choice, "BYTES", 1 << 20)
    return host_target()


def test_shapes_are_measured_once(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    if not target.byte_permute:
        pytest.skip("this processor has no choice")
    measure({(96, 256), (33, 512), (16, 1 << 20)}, target)
    found = known(target)
    assert set(found) == {(96, 256), (33, 512)}  # rows of a million inputs do not fit base 3
    assert all(0 < times["two bits"] < 1 and 0 < times["base 3"] < 1 for times in found.values())
    assert all(0.01 < times[choice.RATIO] < 100 for times in found.values())
    monkeypatch.setattr(choice, "_times", lambda *_: pytest.fail("measured again"))
    measure({(96, 256)}, target)
    assert known(target) == found


def test_base3_must_be_clearly_faster(target: Target) -> None:
    path = choice._file(target)
    path.parent.mkdir()
    ratios = {(1, 64): 0.9, (2, 64): 0.98, (3, 64): 1.5}
    rows = [{"rows": n, "inputs": k, "median": {choice.RATIO: r}} for (n, k), r in ratios.items()]
    path.write_text(json.dumps(rows))
    assert [base3_is_faster((n, 64), target) for n in (1, 2, 3, 4)] == [True, False, False, False]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"rows": 1}]'])
def test_a_damaged_file_counts_as_none(target: Target, content: str) -> None:
    path = choice._file(target)
    path.parent.mkdir()
    path.write_text(content)
    assert known(target) == {}
    assert not base3_is_faster((1, 64), target)


def test_targets_without_byte_tables_are_not_measured(target: Target) -> None:
    measure({(96, 256)}, target_for("avx2", TRIPLE))
    assert known(target) == {}
