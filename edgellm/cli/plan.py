"""`edgellm plan`: what a budget of memory would be spent on, and how fast that should be."""

from __future__ import annotations

from typing import Annotated

import typer

from edgellm.cli import options
from edgellm.cli.options import KvName
from edgellm.cli.sizes import parse_size


def plan(
    model: options.ModelArgument,
    dram: Annotated[
        int,
        typer.Option("--dram", parser=parse_size, metavar="SIZE", help="Memory for the whole process."),
    ],
    threads: options.Threads = None,
    ctx: Annotated[
        int | None,
        typer.Option("--ctx", "-c", min=1, help="Tokens of context [default: the model's, at most 2048]."),
    ] = None,
    kv: options.Kv = KvName.fp16,
    json: options.Json = False,
) -> None:
    """Tell how MODEL would run within a budget of memory.

    What does not fit is read from flash for every token. The speed is predicted from the flash and the memory
    of this machine, which are measured (the flash once, in half a minute). `edgellm bench --dram` tells what
    it really is.

    \b
    Examples:
      edgellm plan model.gguf --dram 2GiB
      edgellm plan model.gguf --dram 600MiB --ctx 512 --json
    """
    from edgellm.cli.flash_bench import flash_device, residency_rows
    from edgellm.cli.output import print_json, size
    from edgellm.executors.native.budgeted import plan_model
    from edgellm.formats.checkpoint import open_checkpoint
    from edgellm.hub import resolve
    from edgellm.kernels.bandwidth import measure
    from edgellm.model import DRAM_CONTEXT, check_context, check_threads
    from edgellm.models import build_program

    checkpoint = open_checkpoint(resolve(model))
    count, context = check_threads(threads), check_context(checkpoint, ctx, DRAM_CONTEXT)
    found = plan_model(build_program(checkpoint, context), checkpoint, dram, context, count, kv.value)
    device, stream = flash_device(), measure(count)
    prediction = found.predict(device, stream, count)
    report = {"model": model, "threads": count, "ctx": context, **found.report(prediction)}
    if json:
        about = {"name": device.device, "date": device.date}
        print_json({**report, "bandwidth": {"stream_bytes_per_second": stream}, "device": about})
        return
    print(f"{model}, {size(dram)} for the process, a context of {context} tokens: {found.mode}")
    for name, nbytes in residency_rows(report):
        print(f"  {name:<22}{size(nbytes):>12}")
    streamed, whole = found.residency.streamed_bytes, found.residency.pinned_bytes
    if streamed:
        share = streamed / (streamed + whole)
        print(f"  {'read for every token':<22}{size(streamed):>12}   ({share:.0%} of the weights)")
    if (neurons := found.neurons) is not None:
        print(
            f"  {'slots of neurons':<22}{neurons.capacity:>12}   of {neurons.slots} in each of "
            f"{neurons.layers} layers"
        )
        if neurons.lent_bytes:
            print(
                f"  {'of them lent':<22}{size(neurons.lent_bytes):>12}   of memory that is needed while a "
                "prompt is read"
            )
        if neurons.active is not None and neurons.missing is not None:
            print(
                f"  {'expected of a token':<22}{neurons.active:>12.0f}   slots, of which "
                f"{neurons.missing:.0f} are read"
            )
        if neurons.window is not None:
            print(f"  {'widest window':<22}{neurons.window:>12}   tokens (--window auto)")
    if prediction is None:
        print("no prediction: nobody has measured which neurons fire; pack the model with --text")
        return
    beside = prediction.memory + prediction.cpu
    print(
        f"predicted {prediction.tokens_per_second:.2f} tokens/s: "
        f"{1e3 * (prediction.io + prediction.waits):.1f} ms of flash, beside {1e3 * beside:.1f} ms of memory "
        "and processor"
    )
