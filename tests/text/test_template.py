"""Prompts against transformers' for real templates; templates that are missing, wrong or hostile."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import EdgeError
from edgellm.formats.checkpoint import Checkpoint, open_checkpoint
from edgellm.text.template import chat_prompt, find_template, render_chat
from edgellm.text.tokenizer import load_tokenizer

GOLDENS = json.loads((Path(__file__).parent / "data" / "templates.json").read_text(encoding="utf-8"))
CASES = [(name, number) for name, golden in GOLDENS.items() for number in range(len(golden["cases"]))]
HI = [{"role": "user", "content": "Hi"}]


def render(template: str, messages: Any = HI, **extras: Any) -> str:
    return render_chat(template, messages, bos="<s>", eos="</s>", **extras)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_prompts_of_transformers(name: str, number: int) -> None:
    golden = GOLDENS[name]
    case = golden["cases"][number]

    def prompt() -> str:
        return render_chat(
            golden["template"],
            case["messages"],
            bos=golden["bos"],
            eos=golden["eos"],
            add_generation_prompt=case["add_generation_prompt"],
            **case.get("extras", {}),
        )

    if "error" in case:
        with pytest.raises(EdgeError) as caught:
            prompt()
        assert case["error"].rstrip(".") in str(caught.value)
    else:
        assert prompt() == case["text"]


def test_what_templates_may_use() -> None:
    assert render("{% generation %}{{ messages[0]['content'] }}{% endgeneration %}") == "Hi"
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"
    assert render("{{ strftime_now('%Y') }}") == datetime.now().strftime("%Y")
    assert (
        render("{% for i in range(9) if i != 1 %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "023"
    )
    assert (
        render("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 2 %}{% endfor %}{{ ns.n }}")
        == "2"
    )
    assert render("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('ab') }}") == "abab"
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"
    assert render("{{ '-' * 3 ~ 'a'.center(5) ~ 2 ** 8 ~ '%03d' % 7 ~ '%s'|format(1) }}") == "---  a  2560071"
    assert render("{{ messages[0].content.strip() }}", [{"role": "user", "content": "100% {12345678}"}])


HOSTILE = {
    "attributes of types": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attributes by filter": "{{ messages | attr('__class__') | attr('__init__') }}{{ messages.__class__.x }}",
    "globals of a function": "{{ cycler.__init__.__globals__.os.popen('id') }}",
    "format strings": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "changing the messages": "{{ messages.append(1) }}",
    "changing a message": "{{ messages[0].update(role='system') }}",
    "underscored namespace": "{% set ns = namespace(__class__=1) %}",
    "a huge range": "{% for i in range(10**9) %}{% endfor %}",
    "a range over the bound": "{% for i in range(100001) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that reject": "{% for i in range(9999) %}{% for j in range(9999) if 0 %}{% endfor %}{% endfor %}",
    "recursive loops": "{% for x in [[1,2]]*9 recursive %}{{ loop([[1,2],[1,2]]) }}{% endfor %}",
    "macros that double": "{% macro f(n) %}{% if n %}{{f(n-1)}}{{f(n-1)}}{% endif %}{% endmacro %}{{f(99)}}",
    "endless macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "endless output": "{% for i in range(99999) %}{{ 'a' * 999999 }}{% endfor %}",
    "a huge repeat": "{{ 'x' * 10**9 }}",
    "a huge list": "{{ ([0] * 10**9) | length }}",
    "a huge power": "{{ 10 ** 10 ** 10 }}",
    "huge padding by filter": "{{ 'a' | center(10**9) }}",
    "huge padding by method": "{{ 'a'.ljust(10**9) }}",
    "huge width by percent": "{{ '%0999999999d' % 1 }}",
    "huge width by filter": "{{ '%0999999999d' | format(1) }}",
    "huge width by format": "{{ '{:>999999999}'.format(1) }}",
    "huge width as an argument": "{{ '{:>{n}}'.format(1, n=10**9) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(
        EdgeError, match=r"^The chat template (was refused|failed): .*; use run with --raw\.$"
    ):
        render(HOSTILE[name])
    assert time.monotonic() - began < 30
    assert HI == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for", "failed: .*unexpected 'end of template'"),
        ("{{ nowhere.content }}", "failed: 'nowhere' is undefined"),
        ("{{ raise_exception('No system role.') }}", "failed: No system role; use run"),
        ("{{ 1 / 0 }}", "failed: division by zero"),
        ("{{ messages + 1 }}", "failed: "),
        ("{{ '\\n'.join([1]) }}", "failed: "),
        ("x" * (1 << 19), "has 524288 characters"),
    ],
)
def test_a_template_that_fails_says_why_in_one_sentence(template: str, message: str) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        render(template)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("use run with --raw.")


def test_each_rendering_has_its_own_budget() -> None:
    template = "{% for i in range(60000) %}{% endfor %}done"
    assert [render(template) for _ in range(3)] == ["done"] * 3


@pytest.mark.parametrize("messages", [["Hi"], [{"content": "Hi"}], [{"role": 1, "content": "Hi"}]])
def test_messages_must_have_roles(messages: Any) -> None:
    with pytest.raises(EdgeError, match="must be a dictionary with a"):
        render("", messages)


# ---- where the template comes from, and the way to ids


@dataclass
class Files:
    path: Path
    format: str
    metadata: dict[str, Any] = field(default_factory=dict)


def find(files: Files) -> str:
    return find_template(files)  # type: ignore[arg-type]


def test_a_folders_template(tmp_path: Path) -> None:
    files = Files(tmp_path, "hf")
    config = tmp_path / "tokenizer_config.json"
    with pytest.raises(EdgeError, match=r"has no chat template; use run with --raw\."):
        find(files)
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert find(files) == "d"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert find(files) == "one"
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert find(files) == "file"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(EdgeError, match="not readable as text"):
        find(files)


@pytest.mark.parametrize("template", [None, "", " \n", 7])
def test_a_file_without_template(template: Any) -> None:
    with pytest.raises(EdgeError, match=r"^m.gguf: the model has no chat template; use run with --raw\.$"):
        find(Files(Path("m.gguf"), "gguf", {"tokenizer.chat_template": template}))


@pytest.fixture(scope="module")
def checkpoint(smollm2: Path) -> Checkpoint:
    return open_checkpoint(smollm2)


def test_smollm2_prompt(checkpoint: Checkpoint) -> None:
    tokenizer = load_tokenizer(checkpoint)
    for case in GOLDENS["smollm2"]["cases"]:
        ids = chat_prompt(
            checkpoint, tokenizer, case["messages"], add_generation_prompt=case["add_generation_prompt"]
        )
        assert tokenizer.decode(ids, skip_special=False) == case["text"]
        assert ids.count(1) == case["text"].count("<|im_start|>")


def test_the_start_token_is_added_once(checkpoint: Checkpoint) -> None:
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.add_bos = True
    for template in ("{{ bos_token }}Hi", "Hi"):
        files: Any = Files(Path("m.gguf"), "gguf", {"tokenizer.chat_template": template})
        assert chat_prompt(files, tokenizer, HI) == [1, *tokenizer.encode("Hi", bos=False)]
