"""The trained model as a Hugging Face folder of master weights, as a GGUF file, and its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeError
from tools.train import texts
from tools.train.corpus import END, REPEATS
from tools.train.shape import Shape

GGUF_NAME = "tiny.gguf"
PROMPT = "Once upon a time"


def export(folder: Path, seed: int) -> Path:
    """Write FOLDER/tiny (safetensors), FOLDER/tiny.gguf and FOLDER/tiny.md; returns the GGUF file's path."""
    kept = folder / "ternary.pt"
    if not kept.exists():
        raise EdgeError(f"{kept} is missing; run the stage ternary first.")
    hf = _write_hf(folder, kept)
    out = folder / GGUF_NAME
    _convert(hf, out)
    forms = {name: _facts(folder / f"{name}.json") for name in ("ternary", "float")}
    (folder / "tiny.md").write_text(card(forms, out.stat().st_size, seed, _sample(out)), encoding="utf-8")
    return out


def _write_hf(folder: Path, kept: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    state = torch.load(kept, weights_only=True)["model"]
    hf = folder / "tiny"
    hf.mkdir(exist_ok=True)
    save_file(
        {f"model.{name}": weight.contiguous() for name, weight in state.items()}, hf / "model.safetensors"
    )
    (hf / "config.json").write_text(json.dumps(Shape().hf_config(), indent=1))
    (hf / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (hf / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END})
    )
    return hf


def _convert(hf: Path, out: Path) -> None:
    from edgellm.cli.app import main

    status = main(["convert", str(hf), str(out), "--type", "TQ2_0", "--outer", "Q8_0"])
    if status:
        raise EdgeError(f"{hf}: the model could not be converted.")


def _facts(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise EdgeError(f"{path} is missing; run the stage {path.stem} first.")
    return json.loads(path.read_text())


def _sample(model: Path) -> str:
    import edgellm

    with edgellm.load(model) as loaded:
        return PROMPT + loaded.generate(PROMPT, max_tokens=200, temperature=0.7, seed=3).text


def card(forms: dict[str, dict[str, Any]], nbytes: int, seed: int, sample: str) -> str:
    """The model card. forms: what training kept of "ternary" and of "float"; sample: what the model wrote."""
    ternary, plain = forms["ternary"], forms["float"]
    plan = ternary["plan"]
    worse = 100 * (ternary["perplexity"] / plain["perplexity"] - 1)
    active = 100 * sum(ternary["active_gates"]) / len(ternary["active_gates"])
    passed = plan["steps"] * plan["batch"] * plan["window"]
    lines = [
        "# tiny: a ternary model to try edgellm with",
        "",
        f"{ternary['parameters'] / 1e6:.1f} million parameters, {nbytes / 1e6:.1f} MB: BitNet b1.58 with a "
        f"squared-ReLU gate, {ternary['layers']} blocks of width {ternary['hidden']}, FFN {ternary['ffn']}, "
        f"a byte-level BPE of {ternary['vocab']} tokens, context {ternary['context']}. It writes simple "
        "English stories, and knows nothing else.",
        "",
        "| | held-out perplexity | trained for |",
        "|---|---|---|",
        *(
            f"| {name} | {facts['perplexity']:.2f} | {facts['seconds'] / 60:.0f} min |"
            for name, facts in forms.items()
        ),
        "",
        f"The ternary form is {worse:+.1f} % against the float one. Of its gates {active:.0f} % are above "
        f"zero. Both saw {passed / 1e6:.1f} million tokens of a corpus of "
        f"{ternary['train_tokens'] / 1e6:.2f} million, which has every story {REPEATS} times, in the same "
        f"order, seed {seed}; {ternary['held_out_tokens']} tokens were held out.",
        "",
        f'With a temperature of 0.7 and seed 3 it goes on from "{PROMPT}":',
        "",
        *(f"> {line}" for line in sample.split("\n")),
        "",
        "## Made of",
        "",
        "- Stories written by SmolLM2-135M-Instruct (Apache-2.0) through edgellm.",
        *(
            f"- {source.title}, {source.author} ({source.year}), public domain in the US; package "
            f"{source.package.name} {source.package.version}."
            for source in texts.SOURCES
        ),
        "",
        "## Made again with",
        "",
        f"    python -m tools.train FOLDER --steps {plan['steps']} --seed {seed}",
        "",
        "## Loss",
        "",
        "The perplexities of the curve are of the first 64 held-out windows, those above of all.",
        "",
        "| step | ternary: loss | held-out perplexity | float: loss | held-out perplexity |",
        "|---|---|---|---|---|",
        *(
            f"| {a[0]} | {a[1]:.3f} | {a[2]:.2f} | {b[1]:.3f} | {b[2]:.2f} |"
            for a, b in zip(ternary["curve"], plain["curve"], strict=False)
        ),
        "",
    ]
    return "\n".join(lines)
