"""Loading a model for a command, with a word on standard error where that takes long."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np

    from edgellm.flash.policies import Policy
    from edgellm.model import Model


def load_model(
    name: str | None,
    *,
    executor: str,
    threads: int | None = None,
    context: int | None = None,
    kv: str = "fp16",
    activations: str = "int16",
    dram: int | None = None,
    policy: Policy | None = None,
) -> Model:
    """edgellm.load for the command line; what takes long is told on standard error."""
    from edgellm.model import load

    progress = LoadProgress()
    notes = Notes(progress)
    log = logging.getLogger("edgellm")
    log.addHandler(notes)
    try:
        return load(
            name,
            executor=executor,
            threads=threads,
            context=context,
            kv=kv,
            activations=activations,
            dram=dram,
            policy=policy,
            progress=progress,
        )
    finally:
        log.removeHandler(notes)
        progress.clear()


def policy_of(window: int | None, rung: str | None = None) -> Policy | None:
    """What --window and --rung ask for."""
    if window is None and rung is None:
        return None  # without importing what reads from flash
    from edgellm.flash.policies import POLICIES, Policy

    if rung is not None and rung not in POLICIES:
        raise EdgeError(f"There is no rung {rung!r}; choose one of {', '.join(POLICIES)}.")
    policy = Policy() if rung is None else POLICIES[rung]
    return policy if window is None else replace(policy, window=window)


class LoadProgress:
    """Told what the executor is at: one line that is rewritten on a terminal, one note elsewhere.

    Packing happens once per model and is shown on a terminal only, compiling once per machine.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._told = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._terminal:
            print(f"\r\x1b[K{stage} {done}/{total}", end="", file=sys.stderr, flush=True)
            self._told = True
        elif stage == "compiling" and not self._told:
            print(f"compiling {total} kernels for this machine, once", file=sys.stderr, flush=True)
            self._told = True

    def clear(self) -> None:
        """Take the line away."""
        if self._terminal and self._told:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Notes(logging.Handler):
    """Shows what the runtime has to say while a model loads, on a line of its own."""

    def __init__(self, progress: LoadProgress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        from edgellm.cli.output import note

        self._progress.clear()
        note(record.getMessage())


def model_label(name: str | None) -> str:
    """The model's name for a result: what was asked for, or the default model."""
    from edgellm.hub.catalogue import DEFAULT_MODEL

    return name or DEFAULT_MODEL


def read_tokens(path: Path, count: int) -> np.ndarray:
    """At least `count` token ids from a JSON file. Raises EdgeError for anything else in it."""
    import json

    import numpy as np

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgeError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except ValueError:
        raise EdgeError(f"{path}: this is not JSON; it should hold a list of token ids.") from None
    if not isinstance(found, list) or not all(type(one) is int and one >= 0 for one in found):
        raise EdgeError(f"{path}: it should hold a JSON list of token ids, whole numbers from 0 on.")
    if len(found) < count:
        raise EdgeError(f"{path}: it has {len(found)} tokens, and these tests need {count}.")
    return np.array(found, np.int64)


def read_standard_input() -> str:
    """All of standard input as text. Raises EdgeError where it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise EdgeError(
            f"Standard input is not UTF-8 text (byte {error.start}); re-encode it as UTF-8 first."
        ) from None


def sampling(
    *,
    temp: float,
    seed: int | None,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    presence_penalty: float,
    logit_bias: list[str] | None,
) -> dict[str, Any]:
    """The command line's options as arguments of SamplingParams; a seed is drawn where none was given."""
    import secrets

    from edgellm.text.sampling import SamplingParams

    how: dict[str, Any] = {
        "temperature": temp,
        "seed": secrets.randbits(32) if seed is None else seed,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repeat_penalty,
        "presence_penalty": presence_penalty,
        "logit_bias": dict(_bias(entry) for entry in logit_bias or ()),
    }
    SamplingParams(**how)  # a wrong value is told before a model is loaded
    return how


def _bias(entry: str) -> tuple[int, float]:
    """ "42=-1.5" -> (42, -1.5)."""
    token, _, bias = entry.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise EdgeError(
            f"--logit-bias {entry}: write it as ID=BIAS, for instance --logit-bias 42=-1.5."
        ) from None
