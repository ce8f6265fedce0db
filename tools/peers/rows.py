"""What the matrix measures: its rows, the programs that each needs, and the bar that each has to reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.peers.models import LARGE, SMALL, SMALL_Q4_1, TQ1_0, TQ2_0, Subject

USUAL = (SMALL, SMALL_Q4_1, LARGE)  # of all groups but "ternary"
TERNARY = (TQ2_0, TQ1_0)
SUBJECTS = {subject.name: subject for subject in (*USUAL, *TERNARY)}
GROUPS = ("decode", "bandwidth", "prefill", "openvino", "depth", "sequences", "memory", "pair", "ternary")
ACTIVATIONS = {"16": (), "8": ("--activations", "int8")}  # bits -> options of `edgellm bench`
NO_AMX = {"EDGELLM_SIMD": "avx512"}
DEPTH = 4096
MEMORY_MB = 200  # beside weights and KV cache


@dataclass(frozen=True)
class Call:
    """One start of a program: "edgellm", "llama.cpp", "openvino", or "pair" for two edgellm at once."""

    program: str
    subject: str
    threads: int
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """One of the figures that a call measures, by the name that the call gives it."""

    call: Call
    test: str
    name: str = ""  # what it is called as somebody's peer, if not after the program


@dataclass(frozen=True)
class Row:
    """A line of the table. With a peer its figure is ours over the peer's, else it is ours.

    unit: "x", "%" or "MB". bar: the figure has to be at least that, or at most if at_most; None: it is told,
    not judged. reason: why the row cannot be measured here.
    """

    group: str
    what: str
    subject: str
    threads: int
    ours: Source | None = None
    peer: Source | None = None
    bar: float | None = None
    unit: str = "x"
    at_most: bool = False
    activations: str = "16"
    reason: str = ""

    @property
    def title(self) -> str:
        return f"{self.what}, {self.subject}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Plan:
    """The rows, and the calls that they need, in an order that puts next to each other what is compared."""

    rows: list[Row]
    calls: list[Call] = field(default_factory=list)

    @classmethod
    def of(cls, rows: list[Row]) -> Plan:
        found = dict.fromkeys(s.call for row in rows for s in (row.ours, row.peer) if s is not None)
        place = list(SUBJECTS)
        calls = sorted(found, key=lambda call: (place.index(call.subject), call.threads, _depth(call)))
        return cls(rows, calls)


def _depth(call: Call) -> bool:
    return bool({"-d", "--depth"} & set(call.options))


def plan(groups: Sequence[str] = GROUPS, activations: Sequence[str] = ("16",), amx: bool = False) -> Plan:
    """The rows of some groups. activations: bits to run prefill with; amx: whether this machine has it."""
    rows = [*_decode(), *_bandwidth(), *_prefill(activations, amx), *_openvino(amx)]
    rows += [*_depth_rows(), *_sequences(), *_memory(), *_pair(), *_ternary()]
    return Plan.of([row for row in rows if row.group in groups])


def _edgellm(subject: Subject, threads: int, *options: str, **environment: str) -> Call:
    return Call("edgellm", subject.name, threads, options, tuple(environment.items()))


def _main(subject: Subject) -> Call:
    """The call that most rows share."""
    return _edgellm(subject, 2, "-p", "128", "-n", "64", "--sequences", "4")


def _llama(subject: Subject) -> Call:
    return Call("llama.cpp", subject.name, 2, ("-p", "128,512", "-n", "64"))


def _decode() -> list[Row]:
    rows = []
    for subject in USUAL:
        ours, peer = Source(_main(subject), "tg64"), Source(_llama(subject), "tg64")
        rows.append(Row("decode", "tg64", subject.name, 2, ours, peer, 2.0))
        options = ("-p", "0", "-n", "64")
        ours = Source(_edgellm(subject, 1, *options), "tg64")
        peer = Source(Call("llama.cpp", subject.name, 1, options), "tg64")
        rows.append(Row("decode", "tg64", subject.name, 1, ours, peer, 2.5))
    return rows


def _bandwidth() -> list[Row]:
    ours = Source(_main(LARGE), "share of stream bandwidth")
    return [Row("bandwidth", "tg64, share of stream bandwidth", LARGE.name, 2, ours, bar=80, unit="%")]


def _prefill(activations: Sequence[str], amx: bool) -> list[Row]:
    rows = []
    modes: list[tuple[str, float, dict[str, str]]] = [("", 2.0, {})]
    if amx:
        modes = [(", AMX", 4.0, {}), (", AMX off", 2.0, NO_AMX)]
    for subject in USUAL:
        for prompt in (128, 512):
            test = f"pp{prompt}"
            if not amx:
                rows.append(Row("prefill", f"{test}, AMX", subject.name, 2, bar=4.0, reason="no AMX"))
            for bits in activations:
                for mode, bar, environment in modes:
                    call = _edgellm(
                        subject, 2, "-p", str(prompt), "-n", "0", *ACTIVATIONS[bits], **environment
                    )
                    if prompt == 128 and bits == "16" and not environment:
                        call = _main(subject)
                    rows.append(
                        Row(
                            "prefill", test + mode, subject.name, 2, Source(call, test),
                            Source(_llama(subject), test), bar, activations=bits,
                        )
                    )  # fmt: skip
    return rows


def _openvino(amx: bool) -> list[Row]:
    call = Call("openvino", SMALL.name, 2)
    calls = {"pp128": _main(SMALL), "pp512": _edgellm(SMALL, 2, "-p", "512", "-n", "0"), "tg64": _main(SMALL)}
    bars = {"pp128": 1.3 if amx else None, "pp512": 1.3 if amx else None, "tg64": None}
    return [
        Row("openvino", test, SMALL.name, 2, Source(ours, test), Source(call, test), bars[test])
        for test, ours in calls.items()
    ]


def _depth_rows() -> list[Row]:
    ours = _edgellm(SMALL, 2, "-p", "0", "-n", "64", "--depth", str(DEPTH))
    peer = Call("llama.cpp", SMALL.name, 2, ("-p", "0", "-n", "64", "-d", str(DEPTH)))
    what = f"tg64 at depth {DEPTH}"
    return [Row("depth", what, SMALL.name, 2, Source(ours, "tg64"), Source(peer, "tg64"), 1.5)]


def _sequences() -> list[Row]:
    return [
        Row(
            "sequences", "tg64x4 against tg64", subject.name, 2, Source(_main(subject), "tg64x4"),
            Source(_main(subject), "tg64", "one sequence"), 2.5,
        )
        for subject in USUAL
    ]  # fmt: skip


def _memory() -> list[Row]:
    what = "peak RSS beyond weights and KV"
    return [
        Row(
            "memory", what, subject.name, 2, Source(_main(subject), what), bar=MEMORY_MB, unit="MB",
            at_most=True,
        )
        for subject in USUAL
    ]  # fmt: skip


def _pair() -> list[Row]:
    pair = Call("pair", SMALL.name, 2, ("-p", "0", "-n", "64"))
    return [
        Row(
            "pair", "tg64, the slower of two at once", SMALL.name, 2, Source(pair, "tg64"),
            Source(_main(SMALL), "tg64", "alone"), 35, unit="%",
        )
    ]  # fmt: skip


def _ternary() -> list[Row]:
    rows = []
    for subject in TERNARY:
        ours = _edgellm(subject, 2, "-p", "128", "-n", "64")
        peer = Call("llama.cpp", subject.name, 2, ("-p", "128", "-n", "64"))
        for test, bar in (("tg64", 2.5), ("pp128", 5.0)):
            rows.append(Row("ternary", test, subject.name, 2, Source(ours, test), Source(peer, test), bar))
        share = "share of stream bandwidth"
        rows.append(Row("ternary", f"tg64, {share}", subject.name, 2, Source(ours, share), bar=70, unit="%"))
    return rows
