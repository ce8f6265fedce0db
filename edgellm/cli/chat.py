"""`edgellm chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import options
from edgellm.cli.interrupt import cancelling
from edgellm.cli.options import ActivationsName, ExecutorName, KvName
from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from edgellm.chat import ChatSession

PROMPT = "> "
HELP = """/bye           leave (so does Ctrl-D)
/clear         forget the conversation
/system TEXT   set the system message and start over; without TEXT remove it
/help          this list
Ctrl-C stops the answer."""


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A catalogue name, a .gguf file, a Hugging Face folder or a bundle (.edge) [default: the "
            "default model].",
            show_default=False,
        ),
    ] = None,
    system: options.System = None,
    max_tokens: options.MaxTokens = 1024,
    temp: options.Temperature = 0.8,
    seed: options.Seed = None,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.05,
    repeat_penalty: options.RepeatPenalty = 1.0,
    presence_penalty: options.PresencePenalty = 0.0,
    logit_bias: options.LogitBias = None,
    stop: options.Stop = None,
    threads: options.Threads = None,
    ctx: options.Ctx = None,
    executor: options.Executor = ExecutorName.native,
    kv: options.Kv = KvName.fp16,
    activations: options.Activations = ActivationsName.int16,
    dram: options.Dram = None,
    window: options.Window = None,
) -> None:
    """Talk with a model.

    Ctrl-C stops an answer, Ctrl-D or /bye leaves; /help lists the commands. Questions may also be piped
    in, one a line.

    \b
    Examples:
      edgellm chat
      edgellm chat model.gguf --system "You answer in rhyme." --temp 0.7
    """
    from edgellm.cli.loading import load_model, policy_of, sampling

    how = sampling(
        temp=temp,
        seed=seed,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        logit_bias=logit_bias,
    )
    with load_model(
        model,
        executor=executor.value,
        threads=threads,
        context=ctx,
        kv=kv.value,
        activations=activations.value,
        dram=dram,
        policy=policy_of(window),
    ) as loaded:
        loaded.chat_prompt([{"role": "user", "content": "?"}])  # a model without a template: say so now
        session = loaded.chat_session(system)
        for line in questions():
            if line.startswith("/"):
                if not obey(line, session):
                    break
            elif line:
                try:
                    answer(session, line, max_tokens, stop or [], how)
                except EdgeError as error:
                    if not sys.stdin.isatty():
                        raise
                    print(f"{error} (/clear starts over.)", file=sys.stderr)


def questions() -> Iterator[str]:
    """Lines that the person types, or that are piped in, until the end of input."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):  # Windows has none; its console edits lines itself
            import readline  # noqa: F401 - gives input() line editing and a history
        print("/help lists the commands.", file=sys.stderr)
    while True:
        try:
            line = input(PROMPT if terminal else "")
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:  # at the question: an empty line
            if not terminal:
                raise
            print()
            continue
        except UnicodeDecodeError:
            raise EdgeError("Standard input is not UTF-8 text; re-encode it as UTF-8 first.") from None
        yield line.strip()


def obey(line: str, session: ChatSession) -> bool:
    """Carry out a /command; False to leave."""
    command, _, text = line.partition(" ")
    if command in ("/bye", "/exit", "/quit"):
        return False
    if command == "/clear":
        session.clear()
    elif command == "/system":
        session.system = text.strip() or None
        session.clear()
    elif command == "/help":
        print(HELP, file=sys.stderr)
    else:
        print(f"{command} is not a command; /help lists them.", file=sys.stderr)
    return True


def answer(
    session: ChatSession, question: str, max_tokens: int, stop: list[str], how: dict[str, Any]
) -> None:
    """Write the answer as it is made; Ctrl-C ends it and keeps in mind what was said."""
    run = session.start(question, max_tokens, stop=stop, **how)
    said = []
    with cancelling(run):
        for event in run:
            said.append(event.text)
            sys.stdout.write(event.text)
            sys.stdout.flush()
    text = "".join(said)
    if not text.endswith("\n"):
        print(flush=True)
    session.remember(question, text)
