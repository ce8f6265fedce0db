"""What `edgellm bench --dram` tells besides speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from edgellm.flash.counters import TokenLog
    from edgellm.flash.device import DeviceModel
    from edgellm.model import Model


def flash_device() -> DeviceModel:
    """The device that packed weights are read from, measured now if it was not before."""
    from edgellm.cli.flash import steps
    from edgellm.flash.probe import load_or_probe
    from edgellm.hub.packs import packs_dir

    folder = packs_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with steps("measuring the flash, once") as advance:
        return load_or_probe(folder, advance=advance)


def residency_rows(plan: dict[str, Any]) -> list[tuple[str, int]]:
    """What the memory of a plan goes to, in bytes."""
    held = plan["residency"]
    names = {
        "process_bytes": "the process", "activations_bytes": "activations", "kv_bytes": "KV cache",
        "pinned_bytes": "weights", "ring_bytes": "weights on their way", "neurons_bytes": "neurons",
    }  # fmt: skip
    return [(name, held[key]) for key, name in names.items() if key in held]


def budget_report(loaded: Model, device: DeviceModel, log: TokenLog, stream: float) -> dict[str, Any]:
    """ "io", "latency_ms", "predicted_tokens_per_second" and "plan" of the JSON object."""
    from edgellm.executors.native.executor import NativeExecutor

    plan = cast(NativeExecutor, loaded.executor).plan()
    assert plan is not None
    prediction = plan.predict(device, stream, loaded.threads)
    held = plan.residency
    told = log.report(held.pinned_bytes + held.streamed_bytes) if log.seconds else {}
    return {
        **told,
        "likeliest_tokens": log.likeliest,
        "predicted_tokens_per_second": prediction and prediction.tokens_per_second,
        "plan": plan.report(prediction),
        "device": {"name": device.device, "date": device.date},
    }


def print_budget(found: dict[str, Any]) -> None:
    """The same for a person."""
    from edgellm.cli.output import size

    plan, io, latency = found["plan"], found["io"], found["latency_ms"]
    held = plan["residency"]
    print(
        f"  mode {plan['mode']}: {size(held['pinned_bytes'])} of weights in memory, "
        f"{size(held['streamed_bytes'])} read for every token, in a ring of {size(held['ring_bytes'])}"
    )
    if "neurons" in plan:
        told = plan["neurons"]
        share = told["slots_in_memory"] / told["slots"]
        lent = held["neurons_lent_bytes"]
        taken = size(held["neurons_bytes"]) + (f", and {size(lent)} that prompts need" if lent else "")
        print(f"  neurons: {share:.0%} of the slots in memory, which take {taken}")
    print(
        f"  flash: {size(io['bytes_per_token'])} and {io['requests_per_token']:.0f} requests a token, "
        f"hit rate {io['hit_rate']['mean']:.1%} (p99 {io['hit_rate']['p99']:.1%})"
    )
    print(
        f"  latency: mean {latency['mean']:.1f} ms, p50 {latency['p50']:.1f}, p90 {latency['p90']:.1f}, p99 "
        f"{latency['p99']:.1f}; waiting for flash {latency['io']:.1f}, memory {latency['memory']:.1f}, "
        f"computing {latency['compute']:.1f}"
    )
    predicted = found["predicted_tokens_per_second"]
    print(
        "  no prediction: that takes a bundle packed with --text, and reads of what fires"
        if predicted is None
        else f"  predicted {predicted:.2f} tokens/s"
    )
