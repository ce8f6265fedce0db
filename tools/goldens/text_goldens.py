"""Make tests/text/data: token ids by llama.cpp and by the models' own tokenizers, prompts by transformers.

    python -m venv /tmp/goldens && /tmp/goldens/bin/pip install transformers==5.23.0 jinja2 gguf
    /tmp/goldens/bin/python tools/goldens/text_goldens.py LLAMA_CPP TOKENIZE MODEL tests/text/data

LLAMA_CPP is llama.cpp's source folder (of llama-cpp-python 0.3.36), TOKENIZE its built llama-tokenize and
MODEL SmolLM2-135M-Instruct as GGUF. It writes

smollm2.json        texts and the ids that llama-tokenize gives
vocabularies.json   for each vocabulary that llama.cpp ships with test cases: the cases, with ids computed by
                    the model's own tokenizer (upstream's convert_hf_to_gguf_update.py made them), and of the
                    vocabulary only what can take part in them: tokens that occur in the texts, renumbered
templates.json      real chat templates, conversations, and the text (or the refusal) of transformers
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SEPARATOR = "\n__ggml_vocab_test__\n"
VOCABULARIES = """command-r deepseek-coder deepseek-llm falcon gemma-4 gpt-2 llama-bpe llama-spm mpt phi-3
qwen2 qwen35 refact starcoder"""
KEPT_TYPES = (3, 6)  # control and byte tokens
TEMPLATES = {
    "llama-3.1": ("meta-llama-Llama-3.1-8B-Instruct", "<|begin_of_text|>", "<|eot_id|>"),
    "qwen2.5": ("Qwen-Qwen2.5-7B-Instruct", "", "<|im_end|>"),
    "gemma-2": ("google-gemma-2-2b-it", "<bos>", "<eos>"),
    "phi-3.5": ("microsoft-Phi-3.5-mini-instruct", "<s>", "<|endoftext|>"),
    "mistral-nemo": ("mistralai-Mistral-Nemo-Instruct-2407", "<s>", "</s>"),
}
USER = {"role": "user", "content": '  What is <b>2 + 2</b>?\nSay it in Ελληνικά & "quotes". '}
TURNS = [USER, {"role": "assistant", "content": " Four. "}, {"role": "user", "content": "And {{ 3 }}?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds <two> numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
    },
}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [USER]},
    {"messages": [{"role": "system", "content": "Be brief."}, *TURNS]},
    {"messages": TURNS},
    {"messages": TURNS[:2], "add_generation_prompt": False},
    {"messages": [USER], "extras": {"tools": [TOOL], "date_string": "26 Jul 2024"}},
    {"messages": [USER, USER]},
    {"messages": []},
]
SMOLLM2_TEXTS = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a <|im_end|><|im_end|> b<|endoftext|>",
    "<|im_end",
    "def f(x):\n\treturn x**2  # 12345\n",
    "👩‍👩‍👧‍👦 🏳️‍🌈 नमस्ते\u200b\u3000\u00a0.",
]


def main(llama_cpp: Path, tokenize: Path, model: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    models = llama_cpp / "models"
    vocabularies = {name: trimmed(models / f"ggml-vocab-{name}.gguf") for name in VOCABULARIES.split()}
    write(out / "vocabularies.json", vocabularies)
    texts = [text for text, _ in cases(models / "ggml-vocab-gpt-2.gguf") if text] + SMOLLM2_TEXTS
    ids = [
        {"text": text, "special": special, "ids": by_llama(tokenize, model, text, special)}
        for text in texts
        for special in ([True, False] if "<|" in text else [True])
    ]
    write(out / "smollm2.json", ids)
    smollm2 = metadata(model)["tokenizer.chat_template"]
    found = {"smollm2": (smollm2, "<|im_start|>", "<|im_end|>")}
    for name, (file, bos, eos) in TEMPLATES.items():
        template = (models / "templates" / f"{file}.jinja").read_text(encoding="utf-8")
        found[name] = (template, bos, eos)
    write(out / "templates.json", {name: rendered(*template) for name, template in found.items()})


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=True, indent=0), encoding="utf-8")


def metadata(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    fields = GGUFReader(path).fields.items()
    return {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}


def cases(vocabulary: Path) -> list[tuple[str, list[int]]]:
    texts = vocabulary.with_suffix(".gguf.inp").read_bytes().decode("utf-8").split(SEPARATOR)
    lines = vocabulary.with_suffix(".gguf.out").read_text().split("\n")
    return [(text, [int(id) for id in line.split()]) for text, line in zip(texts, lines, strict=False)]


def trimmed(path: Path) -> dict[str, Any]:
    """The cases of a vocabulary file, and its metadata cut down to what they can use."""
    full = {k: v for k, v in metadata(path).items() if k.startswith("tokenizer.") or k == "general.name"}
    full.pop("tokenizer.chat_template", None)
    full.pop("tokenizer.huggingface.json", None)
    tokens: list[str] = full["tokenizer.ggml.tokens"]
    types = full["tokenizer.ggml.token_type"]
    tests = cases(path)
    spelled = "\0".join(spelling(text, full) for text, _ in tests)
    ends = {full.get(f"tokenizer.ggml.{name}_token_id", 0) for name in ("bos", "eos", "unknown")}
    used = {id for _, ids in tests for id in ids} | ends
    kept = [
        id
        for id, token in enumerate(tokens)
        if token in spelled or id in used or (types[id] in KEPT_TYPES and token.startswith("<0x"))
    ]
    number = {id: n for n, id in enumerate(kept)}
    words = {tokens[id] for id in kept}
    small: dict[str, Any] = {}
    for key, value in full.items():
        if key == "tokenizer.ggml.merges":
            pairs = [line.split(" ") for line in value]
            small[key] = [" ".join(p) for p in pairs if {*p, "".join(p)} <= words]
        elif isinstance(value, list) and len(value) == len(tokens):
            small[key] = [value[id] for id in kept]
        elif key.endswith("_token_id"):
            if value in number:
                small[key] = number[value]
        else:
            small[key] = value
    return {"metadata": small, "cases": [[text, [number[id] for id in ids]] for text, ids in tests]}


def spelling(text: str, full: dict[str, Any]) -> str:
    """A text in the letters of the vocabulary: bytes as printable characters, or visible spaces."""
    if full["tokenizer.ggml.model"] != "gpt2":
        return "\u2581" + text.replace(" ", "\u2581") + "\0" + text
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text) if text else []
    return "".join(piece for piece, _ in pieces) + "\0" + text


def by_llama(tokenize: Path, model: Path, text: str, special: bool) -> list[int]:
    with tempfile.NamedTemporaryFile("wb", suffix=".txt") as file:
        file.write(text.encode("utf-8"))
        file.flush()
        command = [str(tokenize), "-m", str(model), "-f", file.name, "--ids", "--no-bos", "--no-escape"]
        command += ["--log-disable"] if special else ["--log-disable", "--no-parse-special"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(id) for id in ast.literal_eval(answer.strip())]


def rendered(template: str, bos: str, eos: str) -> dict[str, Any]:
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    results = []
    for conversation in CONVERSATIONS:
        extras = dict(conversation.get("extras", {}))
        tools = extras.pop("tools", None)
        wants = conversation.get("add_generation_prompt", True)
        case = {"add_generation_prompt": wants, **conversation}
        try:
            texts, _ = render_jinja_template(
                [conversation["messages"]],
                tools=tools,
                chat_template=template,
                add_generation_prompt=wants,
                bos_token=bos,
                eos_token=eos,
                **extras,
            )
            case["text"] = texts[0]
        except TemplateError as error:
            case["error"] = str(error)
        results.append(case)
    return {"template": template, "bos": bos, "eos": eos, "cases": results}


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
