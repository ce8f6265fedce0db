"""`edgellm run`: one prompt, one answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import options
from edgellm.cli.interrupt import cancelling
from edgellm.cli.options import ActivationsName, ExecutorName, KvName
from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from edgellm.generate import Generation, Run
    from edgellm.model import Model

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] PROMPT",
        help="One: the prompt, for the default model. Two: the model and the prompt. "
        '"-", or nothing while input is piped in, reads the prompt from standard input.',
        show_default=False,
    ),
]


def run(
    words: Words = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME", help="The model, if not given before the prompt."),
    ] = None,
    system: options.System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands, without the chat template.")
    ] = False,
    max_tokens: options.MaxTokens = 256,
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
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Answer a prompt.

    The answer is written to standard output as it is made. The model's chat template is applied when it
    has one. Without MODEL the default model answers; it is pulled when it is not here yet.

    \b
    Examples:
      edgellm run "Why is the sky blue?"
      edgellm run model.gguf "Name three rivers." --temp 0 -n 64
      cat letter.txt | edgellm run --system "Summarise in one sentence."
      edgellm run --raw "Once upon a time" --seed 7 --json
    """
    from edgellm.cli.loading import load_model, model_label, policy_of, sampling

    model, prompt = model_and_prompt(words or [], model)
    if not prompt.strip():
        raise EdgeError("The prompt is empty; give some text.")
    if raw and system:
        raise EdgeError("--system needs the chat template, which --raw leaves out; use one of them.")
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
        chat = loaded.has_chat_template and not raw
        if system and not chat:
            raise EdgeError(
                f"{model_label(model)} has no chat template, so --system has no place in its prompt."
            )
        tokens = prompt_tokens(loaded, prompt, system, chat)
        generating = loaded.start(tokens, max_tokens, stop=stop or (), continuation=not chat, **how)
        result = write_answer(generating, quiet=json)
        if verbose:
            report(loaded, result, chat, how)
    if json:
        from edgellm.cli.output import print_json

        about = {
            "model": model_label(model),
            "executor": executor.value,
            "kv": kv.value,
            "activations": activations.value,
            "threads": loaded.threads,
            "seed": how["seed"],
        }
        print_json({**result.to_dict(), **about})


def model_and_prompt(words: list[str], model: str | None) -> tuple[str | None, str]:
    """Tell the model from the prompt, which comes from standard input for "-" and where none is given."""
    from edgellm.cli.loading import read_standard_input

    if len(words) > (2 if model is None else 1):
        raise EdgeError("There are too many words; put the prompt in quotes: edgellm run MODEL 'PROMPT'.")
    if len(words) == 2:
        model = words[0]
    prompt = words[-1] if words else None
    if prompt is not None and model is None and _is_model(prompt):
        model, prompt = prompt, None
    if prompt is None and sys.stdin.isatty():
        raise EdgeError(
            f"The prompt is missing; write edgellm run {model or ''} 'PROMPT'.".replace("  ", " ")
        )
    return model, read_standard_input() if prompt in (None, "-") else str(prompt)


def _is_model(word: str) -> bool:
    """Whether the only word is rather a model than a prompt."""
    if Path(word).suffix == ".edge":
        return os.path.isdir(word)
    return word.endswith(".gguf") and os.path.isfile(word)


def prompt_tokens(loaded: Model, prompt: str, system: str | None, chat: bool) -> list[int]:
    """Token ids of the prompt, in the chat template if `chat`."""
    if not chat:
        return loaded.tokenizer.encode(prompt)
    messages = [{"role": "system", "content": system}] if system else []
    return loaded.chat_prompt([*messages, {"role": "user", "content": prompt}])


def write_answer(generating: Run, quiet: bool) -> Generation:
    """Run to the end; unless `quiet`, write the text to standard output piece by piece."""
    text = []
    reason = None
    with cancelling(generating):
        for event in generating:
            reason = event.stop_reason
            if event.text:
                text.append(event.text)
            if event.text and not quiet:
                sys.stdout.write(event.text)
                sys.stdout.flush()
    if not quiet and text and not text[-1].endswith("\n"):
        print(flush=True)
    if generating.cancelled:
        raise KeyboardInterrupt
    return generating.result("".join(text), reason)


def report(loaded: Model, result: Generation, chat: bool, how: dict[str, Any]) -> None:
    """For --verbose: paths taken and timings, on standard error."""
    from edgellm.cli.output import note

    timings = result.timings
    decode = timings.decode_tokens_per_second
    note(f"executor {loaded.executor.name}, {loaded.threads} threads, context {loaded.context}")
    if hasattr(loaded.executor, "weights_source"):
        note(f"weights {loaded.executor.weights_source}")
    for path, names in paths_taken(loaded.executor.describe()).items():
        note(f"  {path}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    note(f"chat template {'applied' if chat else 'not applied'}, seed {how['seed']}")
    note(
        f"load {timings.load_s:.2f} s, first token {timings.ttft_s:.3f} s, "
        f"prefill {timings.prefill_tokens_per_second:.1f} tokens/s, "
        + (f"decode {decode:.1f} tokens/s, " if decode is not None else "")
        + f"{result.prompt_tokens} + {len(result.tokens)} tokens, ended by {result.stop_reason}"
    )


def paths_taken(description: dict[str, str]) -> dict[str, list[str]]:
    """Executor.describe() turned round: path -> names of the weights that take it."""
    paths: dict[str, list[str]] = {}
    for name, path in description.items():
        paths.setdefault(path, []).append(name)
    return paths
