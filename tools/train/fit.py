"""Training of one form of the network, and its perplexity on held-out text.

Matrices of the blocks are trained with Muon (K. Jordan, 2024; steps scaled as in arXiv:2502.16982), the rest
with AdamW: after 150 steps of a trial the loss of the ternary form was 4.65, with AdamW alone 5.53.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from tools.train.network import TinyBitNet
from tools.train.shape import Shape

WARM_UP = 0.03  # of all steps
COOL_FROM = 0.5  # of all steps: from there weights are no longer decayed, as BitNet is trained
CHECK_EVERY = 200  # steps
KEEP_EVERY = 500


@dataclass(frozen=True)
class Plan:
    """How long and how fast. A step takes `batch` windows of `window` tokens."""

    steps: int
    batch: int = 16
    window: int = 256
    rate: float = 4e-3
    decay: float = 0.1
    seed: int = 1


@dataclass
class Progress:
    """The loss curve: (step, training loss, held-out perplexity or None)."""

    curve: list[tuple[int, float, float | None]]
    seconds: float = 0.0


def fit(
    shape: Shape, rounded: bool, train: np.ndarray, held_out: np.ndarray, plan: Plan, kept: Path,
    report: Callable[[str], None],
) -> tuple[TinyBitNet, Progress]:  # fmt: skip
    """Train a model; goes on where a file at `kept` left off. The seed decides the weights and the order of
    windows."""
    _keep_freed_memory()
    torch.manual_seed(plan.seed)
    model = TinyBitNet(shape, rounded)
    loss_of = _compiled(_loss_of(model), report)
    optimizers = _optimizers(model, plan)
    progress, first = Progress([]), 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept_state)
        progress = Progress([tuple(row) for row in state["curve"]], state["seconds"])
        first = state["step"]
    losses: list[float] = []
    begin = time.monotonic() - progress.seconds
    for step in range(first, plan.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * rate_factor(step, plan.steps)
                if step >= COOL_FROM * plan.steps:
                    group["weight_decay"] = 0.0
        loss = loss_of(windows(train, plan, step))
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
        done = step + 1
        if done % CHECK_EVERY == 0 or done == plan.steps:
            ppl = perplexity(model, held_out[: 64 * plan.window], plan.window)
            progress.seconds = time.monotonic() - begin
            progress.curve.append((done, float(np.mean(losses)), ppl))
            losses.clear()
            speed = done * plan.batch * plan.window / progress.seconds
            mean = progress.curve[-1][1]
            report(
                f"step {done}/{plan.steps}: loss {mean:.3f}, held-out perplexity {ppl:.2f}, "
                f"{speed:.0f} tokens/s"
            )
        if done % KEEP_EVERY == 0 or done == plan.steps:
            part = kept.with_suffix(".part")
            kept_states = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "optimizers": kept_states, "step": done}
            torch.save({**state, "curve": progress.curve, "seconds": progress.seconds}, part)
            part.replace(kept)
    return model, progress


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def windows(ids: np.ndarray, plan: Plan, step: int) -> torch.Tensor:
    """int64 (batch, window + 1): those of this step, whatever was drawn before."""
    rng = np.random.default_rng([plan.seed, step])
    starts = rng.integers(0, len(ids) - plan.window, plan.batch)
    return torch.from_numpy(np.stack([ids[s : s + plan.window + 1] for s in starts]).astype(np.int64))


def _optimizers(model: TinyBitNet, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    rest = [
        {"params": [model.embed_tokens.weight], "weight_decay": plan.decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            matrices, lr=plan.rate, weight_decay=plan.decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=plan.rate, betas=(0.9, 0.95), fused=True),
    ]  # fmt: skip


Loss = Callable[[torch.Tensor], torch.Tensor]


def _loss_of(model: TinyBitNet) -> Loss:
    """Of windows, int64 (batch, window + 1): the mean cross entropy, matrices multiplied in bfloat16."""

    def loss(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    return loss


def _compiled(loss: Loss, report: Callable[[str], None]) -> Loss:
    """The same in fused loops, nearly twice as fast, where there is a compiler for them."""
    if shutil.which("g++") is None:
        report("no g++ here, so nothing is fused: training takes nearly twice as long")
        return loss
    compiled: Loss = torch.compile(loss)
    return compiled


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: a step allocates the same sizes again, and fresh pages cost a fifth of
    its time."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20)):  # M_MMAP_MAX, TRIM, TOP_PAD
            mallopt(parameter, value)


def perplexity(model: TinyBitNet, ids: np.ndarray, window: int) -> float:
    """Over whole windows, in float32."""
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        rows = [ids[s : s + window + 1] for s in range(0, len(ids) - window, window)]
        for at in range(0, len(rows), 16):
            batch = torch.from_numpy(np.stack(rows[at : at + 16]).astype(np.int64))
            logits = model(batch[:, :-1])
            total += float(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
            count += batch[:, 1:].numel()
    model.train()
    return math.exp(total / count)
