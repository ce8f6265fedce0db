"""Model: a checkpoint, its Program, an executor and a tokenizer, ready to be asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from edgellm.errors import EdgeError
from edgellm.generate import Generation, Run, TokenHistory

if TYPE_CHECKING:
    from edgellm.chat import ChatSession
    from edgellm.executors.base import Executor, Session
    from edgellm.flash.policies import Policy
    from edgellm.formats.checkpoint import Checkpoint
    from edgellm.program import Program
    from edgellm.text.tokenizer import Tokenizer

EXECUTORS = ("native", "reference")
ACTIVATION_PLANES = {"int16": 2, "int8": 1}  # docs/decisions/0002
DEFAULT_CONTEXT = 8192  # tokens, where the model can hold as many; the KV cache is paged in as it fills
DRAM_CONTEXT = 2048  # the same under a budget, which has to hold the cache of all of them


class Model:
    """A loaded model. Make one with `edgellm.load`; close it, or use it in a `with` statement.

    Sampling is given by the keyword arguments of edgellm.text.sampling.SamplingParams (temperature,
    top_k, top_p, min_p, seed, ...).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        program: Program,
        executor: Executor,
        tokenizer: Tokenizer,
        *,
        threads: int,
        context: int,
        load_s: float = 0.0,
    ):
        self.checkpoint = checkpoint
        self.program = program
        self.executor = executor
        self.tokenizer = tokenizer
        self.threads = threads
        self.context = context
        self.load_s = load_s

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the executor's threads and release its memory."""
        self.executor.close()

    def new_session(self, context: int | None = None) -> Session:
        """An empty sequence of `context` tokens (by default the model's)."""
        return self.executor.new_session(context or self.context)

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Generation:
        """Continue a prompt (text, or token ids) as it stands; `chat` applies the chat template."""
        return self.start(prompt, max_tokens, stop=stop, **sampling).finish()

    def stream(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[str]:
        """Like `generate`, but yields the text in pieces as it becomes certain."""
        return self.start(prompt, max_tokens, stop=stop, **sampling).pieces()

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int = ...,
        *,
        stream: Literal[False] = ...,
        stop: Sequence[str] = ...,
        **sampling: Any,
    ) -> Generation: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int = ...,
        *,
        stream: Literal[True],
        stop: Sequence[str] = ...,
        **sampling: Any,
    ) -> Iterator[str]: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int = 256,
        *,
        stream: bool = False,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Generation | Iterator[str]:
        """Answer messages ({"role": "user", "content": "..."}) with the model's chat template.

        stream: yield pieces of text instead. `chat_session` keeps the KV cache between questions.
        """
        prompt = self.chat_prompt(messages)
        run = self.start(prompt, max_tokens, stop=stop, continuation=False, **sampling)
        return run.pieces() if stream else run.finish()

    def chat_session(self, system: str | None = None) -> ChatSession:
        """A conversation that runs only what is new of each question."""
        from edgellm.chat import ChatSession

        return ChatSession(self, system)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model file tells how a chat is written."""
        from edgellm.text.template import find_template

        try:
            find_template(self.checkpoint)
        except EdgeError:
            return False
        return True

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of the messages in the model's chat template, up to where the answer begins."""
        from edgellm.text.template import chat_prompt

        return chat_prompt(self.checkpoint, self.tokenizer, messages)

    def start(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        stop: Sequence[str] = (),
        history: TokenHistory | None = None,
        continuation: bool = True,
        **sampling: Any,
    ) -> Run:
        """A generation that has not begun: iterate it for events.

        history: run in this session and reuse what it holds. continuation: see Run.
        """
        from edgellm.text.sampling import Sampler, SamplingParams

        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return Run(
            history or TokenHistory(self.new_session()),
            self.tokenizer,
            tokens,
            sampler=Sampler(SamplingParams(**sampling), self.program.vocab_size),
            max_tokens=max_tokens,
            stop=stop,
            continuation=continuation,
            load_s=self.load_s,
        )

    def logits(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """float32 logits of shape (len(tokens), vocab) after each of the tokens, from an empty context."""
        return self.new_session().forward(tokens, all_logits=True)


def load(
    name_or_path: str | PathLike[str] | None = None,
    *,
    executor: str = "native",
    threads: int | None = None,
    context: int | None = None,
    kv: str = "fp16",
    activations: str = "int16",
    dram: int | None = None,
    policy: Policy | None = None,
    progress: Callable[..., None] | None = None,
) -> Model:
    """Open a model and get it ready; a catalogue model that is not here yet is pulled.

    name_or_path: catalogue name, .gguf file or Hugging Face folder (default: the catalogue's first).
    threads: by default the physical cores available. context: tokens that a session holds. kv: what keys
    and values are kept in, "fp16" or "int8", which takes half the memory and rounds more.
    activations: what the inputs of quantised weights are rounded to, "int16" or "int8", which makes prefill
    faster and is less exact. dram: bytes that the whole process may take, with a KV cache of `context`
    tokens; weights that do not fit are read from flash for every token; of a bundle with neurons in slots,
    those that fire. policy: how these come and go.
    progress: told what the native executor is compiling. Raises EdgeError with one sentence.
    """
    from edgellm.formats.checkpoint import open_checkpoint
    from edgellm.hub import resolve
    from edgellm.models import build_program
    from edgellm.text.tokenizer import load_tokenizer

    path = resolve(name_or_path, pull=True)  # not part of load_s: a pull happens once
    started = time.perf_counter()
    threads = check_threads(threads)
    checkpoint = open_checkpoint(path)
    if checkpoint.bundle is not None and checkpoint.bundle.mode == "sparse-threshold":
        logging.getLogger("edgellm").warning(threshold_note(path.name, checkpoint.bundle.manifest))
    context = check_context(checkpoint, context, DEFAULT_CONTEXT if dram is None else DRAM_CONTEXT)
    program = build_program(checkpoint, context)
    with ThreadPoolExecutor(1) as beside:  # packing weights mostly waits for memory, a vocabulary for Python
        pending = beside.submit(load_tokenizer, checkpoint)
        runner = make_executor(
            executor, program, checkpoint, threads, progress, kv, activations, dram=dram, context=context,
            policy=policy,
        )  # fmt: skip
        try:
            tokenizer = pending.result()
        except EdgeError:
            runner.close()
            raise
    load_s = time.perf_counter() - started
    return Model(checkpoint, program, runner, tokenizer, threads=threads, context=context, load_s=load_s)


def threshold_note(name: str, manifest: Mapping[str, Any]) -> str:
    """What the bundle `name` of the mode sparse-threshold leaves out, and what that costs, in a sentence.
    Its calibration is as whoever packed it wrote it."""
    given = manifest.get("calibration")
    facts: Mapping[str, Any] = given if isinstance(given, dict) else {}
    given = facts.get("perplexity")
    cost: Mapping[str, Any] = given if isinstance(given, dict) else {}
    share, model, bundle = facts.get("sparsity"), cost.get("model"), cost.get("bundle")
    much = f"{share:.0%} of".replace("%", " %") if isinstance(share, float) else "some"
    what = f"{name} drops {much} FFN activations below calibrated thresholds"
    if not isinstance(model, float) or not isinstance(bundle, float):
        return f"{what}; what that costs was not measured."
    text = "".join(c if c.isprintable() else "?" for c in str(facts.get("text"))[:80])
    return f"{what}: perplexity {bundle:.1f} instead of {model:.1f} on {text}."


def check_threads(threads: int | None) -> int:
    """The number of threads to use: what was asked for, or one per physical core available."""
    from edgellm.cpus import default_threads

    if threads is not None and threads < 1:
        raise EdgeError(f"The number of threads is {threads}; it must be at least 1.")
    return threads or default_threads()


def check_context(checkpoint: Checkpoint, context: int | None, default: int = DEFAULT_CONTEXT) -> int:
    """The context to use: what was asked for, if the model can hold it, else at most `default`."""
    longest = checkpoint.config.context_length
    if context is None:
        return min(longest, default)
    if not 1 <= context <= longest:
        raise EdgeError(
            f"{checkpoint.path.name} holds a context of 1 to {longest} tokens, not {context}; ask for less."
        )
    return context


def make_executor(
    name: str,
    program: Program,
    checkpoint: Checkpoint,
    threads: int,
    progress: Callable[..., None] | None = None,
    kv: str = "fp16",
    activations: str = "int16",
    *,
    dram: int | None = None,
    context: int | None = None,
    policy: Policy | None = None,
) -> Executor:
    """The executor of that name. Raises EdgeError for an unknown one, or for what it has not."""
    if name == "reference":
        from edgellm.executors.reference import ReferenceExecutor

        if kv != "fp16":
            raise EdgeError(f"The reference executor has no KV cache in {kv}; use the native one.")
        if activations != "int16":
            raise EdgeError("The reference executor does not round activations; use the native one.")
        if dram is not None:
            raise EdgeError("The reference executor has no budget; use the native one.")
        return ReferenceExecutor(program, checkpoint)
    if name == "native":
        from edgellm.executors.native import NativeExecutor

        if activations not in ACTIVATION_PLANES:
            raise EdgeError(
                f"There are no activations in {activations!r}; choose {' or '.join(ACTIVATION_PLANES)}."
            )
        planes = ACTIVATION_PLANES[activations]
        if policy is not None and (checkpoint.bundle is None or checkpoint.bundle.layout is None):
            raise EdgeError(
                f"{checkpoint.path.name} has no neurons in slots, of which some would come and go; pack it "
                "with edgellm pack first, or leave the option out."
            )
        return NativeExecutor(
            program, checkpoint, threads=threads, progress=progress, kv=kv, activation_planes=planes,
            dram=dram, context=context, policy=policy,
        )  # fmt: skip
    raise EdgeError(f"There is no executor {name!r}; choose {' or '.join(EXECUTORS)}.")
