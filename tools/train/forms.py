"""The two forms that are trained, on the same corpus, with the same windows in the same order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import EdgeError
from tools.train import texts
from tools.train.corpus import Corpus, build
from tools.train.stories import read_stories


def corpus(folder: Path, vocab: int) -> Corpus:
    """The corpus, made once: what comes to the folder later changes nothing of a training that has begun."""
    kept = folder / "corpus.npz"
    if not kept.exists():
        stories = folder / "stories.jsonl"
        if not stories.exists():
            raise EdgeError(f"{stories} is missing; run the stage stories first.")
        made, _ = build(texts.documents(folder / "texts"), read_stories(stories), vocab, folder)
        part = folder / "corpus.part.npz"
        np.savez(part, train=made.train, held_out=made.held_out, nbytes=np.int64(made.held_out_bytes))
        part.replace(kept)
    with np.load(kept, allow_pickle=False) as arrays:
        return Corpus(arrays["train"], arrays["held_out"], int(arrays["nbytes"]))


def train_form(
    folder: Path, form: str, *, steps: int, seed: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Train "ternary" or "float", or go on with it; what came of it is also kept as FORM.json."""
    from tools.train.fit import Plan, fit, perplexity
    from tools.train.network import Mlp
    from tools.train.shape import Shape

    shape, plan = Shape(), Plan(steps=steps, seed=seed)
    data = corpus(folder, shape.vocab)
    model, progress = fit(
        shape, form == "ternary", data.train, data.held_out, plan, folder / f"{form}.pt",
        lambda line: report(f"{form}: {line}"),
    )  # fmt: skip
    final = perplexity(model, data.held_out, plan.window)
    active = [layer.active for layer in model.modules() if isinstance(layer, Mlp)]
    facts = {
        **model.facts(), "plan": vars(plan), "train_tokens": len(data.train),
        "held_out_tokens": len(data.held_out), "held_out_bytes": data.held_out_bytes,
        "perplexity": final, "active_gates": active, "seconds": progress.seconds, "curve": progress.curve,
    }  # fmt: skip
    (folder / f"{form}.json").write_text(json.dumps(facts, indent=1))
    report(f"{form}: held-out perplexity {final:.2f}, gates above zero {100 * float(np.mean(active)):.0f} %")
    return facts
