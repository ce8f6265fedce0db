"""Chat templates: messages to a prompt, in a sandbox, as transformers renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from edgellm.formats.checkpoint import Checkpoint
    from edgellm.text.tokenizer import Tokenizer

MAX_PROMPT_CHARACTERS = 16 << 20  # a template that writes more than this is not a chat prompt
_MAX_TEMPLATE_CHARACTERS = 1 << 18  # the longest known has some 30 000
# What Python raises when a template adds a list to a word, divides by zero, calls itself for ever, ...
_MISTAKES = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RecursionError,
)

Message = Mapping[str, Any]


def chat_prompt(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    **extras: Any,
) -> list[int]:
    """Token ids of a conversation: the model's template rendered, then encoded with its special tokens.

    The start token comes from the template, or is added if the model wants one and the template has none.
    messages: dictionaries with "role" and "content". extras: variables the template may ask for.
    Raises EdgeError for a model without template and for a template that fails.
    """
    text = render_chat(
        find_template(checkpoint),
        messages,
        bos=tokenizer.bos_token,
        eos=tokenizer.eos_token,
        add_generation_prompt=add_generation_prompt,
        **extras,
    )
    ids = tokenizer.encode(text, special=True, bos=False)
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids


def find_template(checkpoint: Checkpoint) -> str:
    """The checkpoint's chat template. Raises EdgeError if it has none."""
    template: Any
    if checkpoint.format in ("gguf", "edge"):
        template = checkpoint.metadata.get("tokenizer.chat_template")
    else:
        template = _template_of_folder(checkpoint)
    if not isinstance(template, str) or not template.strip():
        raise EdgeError(f"{checkpoint.path}: the model has no chat template; use run with --raw.")
    return template


def _template_of_folder(checkpoint: Checkpoint) -> Any:
    from edgellm.text.from_hf import read_json

    file = checkpoint.path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise EdgeError(f"{file}: not readable as text ({error}).") from None
    template = read_json(checkpoint.path / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}
        template = named.get("default")
    return template


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str,
    eos: str,
    add_generation_prompt: bool = True,
    **extras: Any,
) -> str:
    """The prompt text of a conversation.

    The template comes with the model, so it is run as untrusted code: no attributes beyond plain data, no
    changes to it, loops bounded (see sandbox.py) and the output by MAX_PROMPT_CHARACTERS.
    Raises EdgeError with the template's own message, or with what it tried.
    """
    import jinja2
    from jinja2.exceptions import SecurityError

    from edgellm.text.sandbox import generate

    if len(template) > _MAX_TEMPLATE_CHARACTERS:
        raise EdgeError(f"The chat template has {len(template)} characters; use run with --raw.")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise EdgeError('A chat message must be a dictionary with a "role" and its "content".')
    names = {
        "tools": None,
        "documents": None,
        **extras,
        "messages": list(messages),
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": add_generation_prompt,
    }
    parts: list[str] = []
    size = 0
    try:
        for part in generate(template, names):
            size += len(part)
            if size > MAX_PROMPT_CHARACTERS:
                raise SecurityError(f"it writes more than {MAX_PROMPT_CHARACTERS} characters")
            parts.append(part)
    except SecurityError as error:
        raise EdgeError(f"The chat template was refused: {_sentence(error)}; use run with --raw.") from None
    except (jinja2.TemplateError, *_MISTAKES) as error:
        raise EdgeError(f"The chat template failed: {_sentence(error)}; use run with --raw.") from None
    return "".join(parts)


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
