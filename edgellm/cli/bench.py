"""`edgellm bench`: how fast a model runs here, and how near that is to the memory's limit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import options
from edgellm.cli.options import ActivationsName, ExecutorName, KvName
from edgellm.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np

    from edgellm.bench import Result
    from edgellm.model import Model


def bench(
    model: options.ModelArgument,
    prompt: Annotated[
        int, typer.Option("-p", "--prompt", min=0, help="Tokens of the prefill test; 0 leaves it out.")
    ] = 128,
    generate: Annotated[
        int, typer.Option("-n", "--generate", min=0, help="Tokens of the decode test; 0 leaves it out.")
    ] = 64,
    depth: Annotated[int, typer.Option("--depth", min=0, help="Tokens in the context before each test.")] = 0,
    sequences: Annotated[
        int, typer.Option("--sequences", min=1, help="Also decode so many sequences at once.")
    ] = 1,
    ops: Annotated[
        bool, typer.Option("--ops", help="Also tell for each kind of op what bounds it, and how near it is.")
    ] = False,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Samples of each test.")] = 5,
    threads: options.Threads = None,
    executor: options.Executor = ExecutorName.native,
    kv: options.Kv = KvName.fp16,
    activations: options.Activations = ActivationsName.int16,
    dram: options.Dram = None,
    window: options.Window = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            metavar="FILE",
            help="Run these token ids, a JSON list, instead of random ones; who fires depends on them.",
        ),
    ] = None,
    ladder: Annotated[
        bool,
        typer.Option(
            "--ladder",
            help="Of a bundle with --dram: measure one by one what makes it fast, from reading every weight "
            "for every token on; draws a chart.",
        ),
    ] = False,
    rung: Annotated[
        str | None, typer.Option("--rung", metavar="NAME", help="Measure this rung of the ladder alone.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure prefill (pp) and decode (tg) of MODEL in tokens per second, as llama-bench does.

    Random tokens, after a warm-up. Achieved bandwidth is the bytes of weights that a token needs times the
    decoded tokens per second; stream bandwidth is what the same threads read from memory doing nothing else.
    With --sequences 4 the test tg64x4 decodes four sequences together, tokens per second in all.

    --ops runs each step once more with a clock around every op, and sets its time beside what its bytes
    take at the stream bandwidth and its multiply-adds at the peak rate of this machine, both measured here.

    \b
    Examples:
      edgellm bench smollm2
      edgellm bench model.gguf -p 512 -n 128 --depth 1024 --threads 2 --json
      edgellm bench smollm2 -p 512 --ops
      edgellm bench model.gguf --dram 2GiB
      edgellm bench model.edge --dram 2GiB --ladder
    """
    from edgellm.bench import measure
    from edgellm.cli.flash_bench import budget_report, flash_device
    from edgellm.cli.loading import load_model, policy_of, read_tokens
    from edgellm.flash.counters import TokenLog

    if prompt == generate == 0:
        raise EdgeError("There is nothing to measure: give -p or -n a number above 0.")
    context = depth + max(prompt, generate)
    if ops and dram is not None:
        raise EdgeError("--ops tells what bounds weights in memory; leave it out with --dram.")
    if (ladder or rung) and dram is None:
        raise EdgeError("The ladder is about memory that does not hold a model; give --dram too.")
    if ladder:
        from edgellm.cli.ladder import climb

        climb(model, generate=generate, repetitions=repetitions, threads=threads, dram=dram, tokens=tokens,
              kv=kv.value, json=json)  # fmt: skip
        return
    ids = None if tokens is None else read_tokens(tokens, context)
    device = None if dram is None else flash_device()
    log = None if dram is None else TokenLog([], [], [])
    with load_model(
        model,
        executor=executor.value,
        threads=threads,
        context=context,
        kv=kv.value,
        activations=activations.value,
        dram=dram,
        policy=policy_of(window, rung),
    ) as loaded:
        results, kv_bytes = measure(
            loaded,
            prompt=prompt,
            generate=generate,
            depth=depth,
            repetitions=repetitions,
            sequences=sequences,
            log=log,
            tokens=ids,
        )
        found = report(model, loaded, results, kv_bytes) | {"kv": kv.value, "activations": activations.value}
        if device is not None and log is not None:
            found |= budget_report(loaded, device, log, _stream(found))
        elif ops or json:
            found |= roofline(
                loaded,
                prompt=prompt,
                generate=generate,
                depth=depth,
                sequences=sequences,
                stream=_stream(found),
            )
    if json:
        from edgellm.cli.output import print_json

        print_json(found)
    else:
        print_table(found)


def report(name: str, loaded: Model, results: list[Result], kv_bytes: int | None) -> dict[str, Any]:
    """The JSON object of the command."""
    from edgellm.bench import peak_rss_bytes, weight_bytes_per_token
    from edgellm.kernels.bandwidth import measure as stream_bandwidth

    peak = peak_rss_bytes()  # before the bandwidth test takes memory of its own
    per_token = weight_bytes_per_token(loaded)
    decoded = [result.median for result in results if result.test.startswith("tg")]
    return {
        "model": name,
        "executor": loaded.executor.name,
        "simd": getattr(loaded.executor, "simd", "numpy"),
        "threads": loaded.threads,
        "load_s": loaded.load_s,
        "results": [
            {
                "test": result.test,
                "depth": result.depth,
                "tokens_per_second": {"median": result.median, "samples": result.samples},
            }
            for result in results
        ],
        "memory": {
            "peak_rss_bytes": peak,
            "weights_bytes": getattr(loaded.executor, "weights_bytes", loaded.checkpoint.nbytes),
            "weights_source": getattr(loaded.executor, "weights_source", None),
            "kv_bytes": kv_bytes,
        },
        "bandwidth": {
            "stream_bytes_per_second": stream_bandwidth(loaded.threads, area=_pinned(loaded)),
            "achieved_bytes_per_second": per_token * decoded[0] if decoded else None,
            "weights_bytes_per_token": per_token,
        },
    }


def _pinned(loaded: Model) -> np.ndarray | None:
    """Memory that holds weights, where a budget leaves no room for other memory to read."""
    from edgellm.executors.native.executor import NativeExecutor

    store = loaded.executor.streamed if isinstance(loaded.executor, NativeExecutor) else None
    return None if store is None else store.resident


def _stream(found: dict[str, Any]) -> float:
    return float(found["bandwidth"]["stream_bytes_per_second"])


def roofline(
    loaded: Model, *, prompt: int, generate: int, depth: int, sequences: int, stream: float
) -> dict[str, Any]:
    """The JSON object's "peak" (multiply-adds per second) and "ops"; None for both where the executor cannot
    tell the time of an op."""
    from edgellm.bench import profile_steps
    from edgellm.executors.native.executor import NativeExecutor

    if not isinstance(loaded.executor, NativeExecutor):
        return {"peak": None, "ops": None}
    from edgellm.kernels.peak import measure as peak_rate
    from edgellm.roofline import Machine

    peak = peak_rate(loaded.threads, loaded.executor.target)
    machine = Machine(stream, peak.int8, peak.float32)
    steps = profile_steps(
        loaded, loaded.executor, prompt=prompt, generate=generate, depth=depth, sequences=sequences
    )
    return {
        "peak": {"int8_macs_per_second": peak.int8, "float32_macs_per_second": peak.float32},
        "ops": {name: step.report(machine) for name, step in steps.items()},
    }


def print_table(found: dict[str, Any]) -> None:
    """The same for a person."""
    from edgellm.cli.output import size

    print(f"{found['model']}: {found['executor']} ({found['simd']}), {found['threads']} threads")
    for result in found["results"]:
        speed = result["tokens_per_second"]
        depth = f" at depth {result['depth']}" if result["depth"] else ""
        low, high = min(speed["samples"]), max(speed["samples"])
        print(f"  {result['test'] + depth:<20} {speed['median']:10.2f} tokens/s   ({low:.2f} to {high:.2f})")
    memory, bandwidth = found["memory"], found["bandwidth"]
    held = "" if memory["kv_bytes"] is None else f", KV cache {size(memory['kv_bytes'])}"
    print(f"  memory: peak {size(memory['peak_rss_bytes'])}, weights {size(memory['weights_bytes'])}{held}")
    if memory["weights_source"]:
        print(f"  weights {memory['weights_source']}")
    stream, achieved = bandwidth["stream_bytes_per_second"], bandwidth["achieved_bytes_per_second"]
    reached = (
        "" if achieved is None else f", decode reads {achieved / 1e9:.2f} GB/s ({achieved / stream:.0%})"
    )
    print(f"  bandwidth: stream {stream / 1e9:.2f} GB/s{reached}")
    if "latency_ms" in found:
        from edgellm.cli.flash_bench import print_budget

        print_budget(found)
    if found.get("ops") is not None:
        from edgellm.roofline import table

        rates = found["peak"]
        print(
            f"  peak: {rates['int8_macs_per_second'] / 1e9:.0f} G int8 and "
            f"{rates['float32_macs_per_second'] / 1e9:.0f} G float32 multiply-adds/s"
        )
        for step in found["ops"].values():
            print("\n" + table(step))
