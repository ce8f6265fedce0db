"""Who will fire, told from an FFN's inputs before the gate is computed: the low-rank predictor of "LLM in a
flash" (arXiv 2312.11514, section 3.1).

Of each layer sigmoid(up relu(down x) + bias) > 1/2, which is to say that the score is above 0. It is learnt
from what the model that a bundle was packed from does on a text, with a loss in which the neurons that fire
and those that do not count the same. predictor.safetensors, in the order of the bundle's neurons:

    blk.N.predictor_down  float16 (rank, hidden)
    blk.N.predictor_up    float16 (neurons, rank)
    blk.N.predictor_bias  float32 (neurons,)
    and as metadata "facts", JSON: what it was trained on, and how often it was right on the rest of that
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgellm.errors import EdgeError
from edgellm.flash.calibrate import ACTIVATIONS, CONTEXT, watch
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.edge import Bundle
from edgellm.formats.edge_manifest import NEURONS, PREDICTOR
from edgellm.formats.edge_work import write_file
from edgellm.formats.safetensors import map_safetensors
from edgellm.formats.slots import SlotLayout

RANK = 128
EPOCHS = 8  # of 14,000 tokens, with the shipped model: twice as many find 1 % more of those that fire
MOST_TOKENS = 65536  # that are looked at
FEWEST_TOKENS = 256
LEAST_CHUNKS = 8
HELD_OUT = 0.15  # of the chunks, the last ones
MOST_BYTES = 1 << 30  # of inputs, and who fired, that are kept to learn from
BATCH = 64  # tokens of a step
RATE = 4e-3  # of Adam, at the start; it falls to 0
_MOMENTS = (0.9, 0.999)
_LEAST_SCALE = 0.01  # of an input's channel, by the layer's: none is blown up
_HALF = float(np.finfo(np.float16).max)
_PARTS = {"down": "F16", "up": "F16", "bias": "F32"}
_KINDS = {"F16": "<f2", "F32": "<f4"}
Progress = Callable[[int, int], None]  # steps done, of how many


class Weights(NamedTuple):
    """Of a layer: down (rank, hidden), up (neurons, rank), bias (neurons,)."""

    down: np.ndarray
    up: np.ndarray
    bias: np.ndarray

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        """float32 (tokens, neurons) of inputs (tokens, hidden): above 0 for those that should fire."""
        down, up = (part.astype(np.float32, copy=False) for part in (self.down, self.up))
        return np.asarray(np.maximum(inputs @ down.T, 0) @ up.T + self.bias)


@dataclass(frozen=True)
class Figures:
    """Of a layer, on tokens that were held out. fires, predicted: shares of the neurons; recall: share of
    those that fire which are predicted; precision: share of those predicted which fire; None for 0 / 0.
    perplexity: the model's if this layer alone is predicted (flash/predictor_cost.py)."""

    fires: float
    predicted: float
    recall: float | None
    precision: float | None
    perplexity: float | None = None


@dataclass(frozen=True)
class Trained:
    """Weights (as they are stored) and figures of each layer; tokens: learnt from; held_out: measured on."""

    weights: tuple[Weights, ...]
    figures: tuple[Figures, ...]
    tokens: int
    held_out: int
    epochs: int
    seed: int

    @property
    def rank(self) -> int:
        return int(self.weights[0].down.shape[0])


def chunks_of(checkpoint: Checkpoint, text: str) -> list[list[int]]:
    """The tokens of a text in pieces that the model runs by themselves, at least LEAST_CHUNKS. Raises
    EdgeError for a text that is too short."""
    from edgellm.text.tokenizer import load_tokenizer

    tokens = list(load_tokenizer(checkpoint).encode(text))[:MOST_TOKENS]
    if len(tokens) < FEWEST_TOKENS:
        raise EdgeError(
            f"The text has {len(tokens)} tokens, too few to learn from who fires; give one of at least "
            f"{FEWEST_TOKENS}, better of tens of thousands."
        )
    context = min(CONTEXT, checkpoint.config.context_length, len(tokens) // LEAST_CHUNKS)
    return [tokens[i : i + context] for i in range(0, len(tokens), context)]


def learnt_from(chunks: Sequence[Sequence[int]]) -> int:
    """How many of the chunks are learnt from; the others are held out."""
    return len(chunks) - max(1, round(HELD_OUT * len(chunks)))


def train(
    checkpoint: Checkpoint, bundle: Bundle, chunks: Sequence[Sequence[int]], threads: int, *,
    rank: int = RANK, epochs: int = EPOCHS, seed: int = 0, progress: Progress | None = None,
) -> Trained:  # fmt: skip
    """Learn who fires in the layers of `bundle` from what the model it was packed from does on `chunks`.

    The last of the chunks (HELD_OUT of them, at least one) are measured on. Inputs are kept, in float16, up
    to MOST_BYTES; a longer text is learnt from in parts of that size, one after the other. Raises EdgeError
    for another model, a bundle without neurons in slots, a single chunk, and a rank that does not fit.
    """
    layout = check_source(checkpoint, bundle)
    if not 1 <= rank <= min(layout.hidden, layout.neurons):
        raise EdgeError(f"The rank is {rank}; it must be from 1 to {min(layout.hidden, layout.neurons)}.")
    if len(chunks) < 2:
        raise EdgeError("One chunk of tokens is not enough to learn from some and measure on others.")
    kept = learnt_from(chunks)
    tokens, held_out = sum(map(len, chunks[:kept])), sum(map(len, chunks[kept:]))
    each = 2 * layout.hidden + -(-layout.neurons // 8)
    longest = max(map(len, chunks))
    room = max(MOST_BYTES // (layout.layers * each), longest)
    layers = [_Layer(layout, rank, epochs, tokens, seed + 1000 * i) for i in range(layout.layers)]
    activation = ACTIVATIONS[checkpoint.config.activation]
    tell = progress or (lambda done, total: None)
    steps = tokens + held_out + epochs * tokens
    done = learnt = seen = 0
    assert bundle.order is not None
    limit = checkpoint.config.activation_threshold
    order, thresholds = bundle.order, bundle.thresholds or (limit,) * layout.layers

    def see(layer: int, inputs: np.ndarray, gates: np.ndarray) -> None:
        fired = (np.abs(activation(gates)) > thresholds[layer])[:, order[layer]]
        if seen < tokens:
            layers[layer].keep(inputs, fired)
        else:
            layers[layer].measure(inputs, fired)

    def report(count: int) -> None:
        nonlocal learnt, seen, done
        done, seen = done + count - seen, count
        if learnt < tokens and (count == tokens or count - learnt + longest > room):
            for i, _ in enumerate(pool.map(_Layer.learn, layers), 1):
                tell(done + epochs * (count - learnt) * i // len(layers), steps)
            done, learnt = done + epochs * (count - learnt), count
        tell(done, steps)

    with ThreadPoolExecutor(threads) as pool:
        watch(checkpoint, chunks, threads, see, report)
    weights = tuple(layer.result() for layer in layers)
    return Trained(weights, tuple(layer.figures() for layer in layers), tokens, held_out, epochs, seed)


def check_source(checkpoint: Checkpoint, bundle: Bundle) -> SlotLayout:
    """The layout of the bundle. Raises EdgeError unless it was packed from `checkpoint`, with slots."""
    layout, config = bundle.layout, checkpoint.config
    if layout is None:
        raise EdgeError(f"{bundle.path}: the mode is stream, so there are no neurons to be predicted.")
    given = bundle.manifest.get("source")
    source: Mapping[str, Any] = given if isinstance(given, dict) else {}
    files = [{"name": Path(file.path).name, "bytes": file.size} for file in checkpoint.files]
    shape = (config.n_layers, config.ffn_size, config.hidden_size)
    same = source.get("name") == checkpoint.path.resolve().name and source.get("files") == files
    if not same or shape != (layout.layers, layout.neurons, layout.hidden):
        raise EdgeError(
            f"{bundle.path}: this was packed from {str(source.get('name'))[:80]!r}, and {checkpoint.path} is "
            "another model or of another size; give the model that the bundle was packed from."
        )
    return layout


def gradients(
    weights: Weights, inputs: np.ndarray, fired: np.ndarray, positive: float, negative: float
) -> Weights:
    """Of the cross entropy with labels `fired` (tokens, neurons), summed over neurons, the mean over inputs
    (tokens, hidden); a neuron that fires counts `positive` times, another one `negative` times."""
    down, up, bias = weights
    hidden = np.maximum(inputs @ down.T, 0)
    slope = hidden @ up.T
    slope += bias
    np.clip(slope, -30, 30, out=slope)
    np.negative(slope, out=slope)
    np.exp(slope, out=slope)
    slope += 1
    np.reciprocal(slope, out=slope)  # the probability
    slope -= fired
    slope *= np.where(fired, slope.dtype.type(positive), slope.dtype.type(negative))
    slope /= len(inputs)
    back = slope @ up
    back *= hidden > 0
    return Weights(back.T @ inputs, slope.T @ hidden, slope.sum(axis=0))


class _Layer:
    """What a layer's predictor learns from, what it has learnt, and how it does."""

    def __init__(self, layout: SlotLayout, rank: int, epochs: int, tokens: int, seed: int):
        """tokens: that will be kept, in all."""
        self._rng = np.random.default_rng(seed)
        self._layout, self._epochs = layout, epochs
        self._steps = max(1, epochs * -(-tokens // BATCH))
        down = self._rng.normal(size=(rank, layout.hidden)) / math.sqrt(layout.hidden)
        up = self._rng.normal(size=(layout.neurons, rank)) / math.sqrt(rank)
        bias = np.zeros(layout.neurons)
        self._weights = Weights(*(part.astype(np.float32) for part in (down, up, bias)))
        self._first = Weights(*map(np.zeros_like, self._weights))  # Adam's moments
        self._second = Weights(*map(np.zeros_like, self._weights))
        self._step = 0
        self._scale: np.ndarray | None = None  # float32 (hidden,), of the inputs
        self._inputs: list[np.ndarray] = []  # float16 (tokens, hidden)
        self._fired: list[np.ndarray] = []  # bits (tokens, neurons)
        self._stored: Weights | None = None
        self._tokens = self._fires = self._predicted = self._right = 0

    def keep(self, inputs: np.ndarray, fired: np.ndarray) -> None:
        """Inputs (tokens, hidden) and who fires, bool (tokens, neurons), to learn from."""
        self._inputs.append(np.clip(inputs, -_HALF, _HALF).astype(np.float16))
        self._fired.append(np.packbits(fired, axis=1))

    def learn(self) -> None:
        """Learn from what was kept, and forget it."""
        inputs, bits = np.concatenate(self._inputs), np.concatenate(self._fired)
        self._inputs, self._fired = [], []
        counts = np.zeros(self._layout.neurons)
        for i in range(0, len(bits), CONTEXT):
            counts += self._unpack(bits[i : i + CONTEXT]).sum(axis=0)
        share = float(np.clip(counts.sum() / (len(bits) * len(counts)), 1e-4, 1 - 1e-4))
        if self._scale is None:
            squares = np.mean(np.square(inputs, dtype=np.float32), axis=0)
            self._scale = np.sqrt(np.maximum(squares, _LEAST_SCALE**2 * squares.mean())) + 1e-12
            often = (counts + share) / (len(bits) + 1)  # a neuron never seen fire may
            self._weights.bias[:] = np.log(often / (1 - often)) - math.log(share / (1 - share))
        for _ in range(self._epochs):
            places = self._rng.permutation(len(bits))
            for i in range(0, len(places), BATCH):
                rows = places[i : i + BATCH]
                self._improve(inputs[rows] / self._scale, self._unpack(bits[rows]), share)

    def _unpack(self, bits: np.ndarray) -> np.ndarray:
        return np.unpackbits(bits, axis=1, count=self._layout.neurons).view(bool)

    def _improve(self, inputs: np.ndarray, fired: np.ndarray, share: float) -> None:
        """A step of Adam (arXiv 1412.6980)."""
        found = gradients(self._weights, inputs, fired, 0.5 / share, 0.5 / (1 - share))
        rate = RATE * 0.5 * (1 + math.cos(math.pi * min(1.0, self._step / self._steps)))
        self._step += 1
        one, two = _MOMENTS
        rate *= math.sqrt(1 - two**self._step) / (1 - one**self._step)
        for part, first, second, slope in zip(self._weights, self._first, self._second, found, strict=True):
            first += (1 - one) * (slope - first)
            second += (1 - two) * (np.square(slope, out=slope) - second)
            part -= rate * first / (np.sqrt(second) + 1e-8)

    def result(self) -> Weights:
        """The weights as they are stored. Raises EdgeError where learning led nowhere."""
        if self._stored is None:
            assert self._scale is not None
            halves = (self._weights.down / self._scale, self._weights.up)
            if not all(np.isfinite(part).all() for part in (*halves, self._weights.bias)):
                raise EdgeError("The predictor's weights are not finite numbers; is the model damaged?")
            down, up = (np.clip(part, -_HALF, _HALF).astype(np.float16) for part in halves)
            self._stored = Weights(down, up, self._weights.bias)
        return self._stored

    def measure(self, inputs: np.ndarray, fired: np.ndarray) -> None:
        """Compare what is predicted for inputs (tokens, hidden) with bool (tokens, neurons)."""
        predicted = self.result().scores(inputs) > 0
        self._tokens += len(inputs)
        self._fires += int(fired.sum())
        self._predicted += int(predicted.sum())
        self._right += int((predicted & fired).sum())

    def figures(self) -> Figures:
        """Of all that was measured."""
        count = self._tokens * self._layout.neurons
        return Figures(
            self._fires / count,
            self._predicted / count,
            self._right / self._fires if self._fires else None,
            self._right / self._predicted if self._predicted else None,
        )


# -- the file


def save(trained: Trained, bundle: Bundle, text: str) -> Path:
    """Write predictor.safetensors into the bundle, in the place of an older one. text: the name of what it
    was trained on. Raises EdgeError where the folder cannot be written to."""
    from safetensors.numpy import save as encode

    path = bundle.path / PREDICTOR
    arrays = {
        f"blk.{layer}.predictor_{part}": np.ascontiguousarray(array)
        for layer, weights in enumerate(trained.weights)
        for part, array in weights._asdict().items()
    }
    facts = {
        "neurons": _digest(bundle),
        "rank": trained.rank,
        "text": text,
        "tokens": trained.tokens,
        "held_out_tokens": trained.held_out,
        "epochs": trained.epochs,
        "seed": trained.seed,
        "layers": [asdict(one) for one in trained.figures],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    try:
        write_file(path, encode(arrays, {"facts": json.dumps(facts, allow_nan=False)}))
    except OSError as error:
        path.with_name(path.name + ".part").unlink(missing_ok=True)
        raise EdgeError(f"{path}: cannot be written ({error.strerror or error}).") from None
    return path


def _digest(bundle: Bundle) -> str | None:
    """The checksum of what says which neuron is which, so that the order is that of the predictor."""
    found: str | None = bundle.manifest["parts"][NEURONS]["sha256"]
    return found


def read_facts(path: Path) -> dict[str, Any]:
    """What the metadata of predictor.safetensors says. Raises EdgeError where it says nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            facts = json.loads((file.metadata() or {})["facts"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise _damaged(path, "it does not say what it was trained on")
    return facts


def load(path: Path, bundle: Bundle) -> dict[str, np.ndarray]:
    """The arrays of predictor.safetensors by name, mapped. Raises EdgeError, one sentence, for a file that
    is damaged, or of another bundle than `bundle`, which has neurons in slots."""
    layout = bundle.layout
    assert layout is not None
    tensors, facts = map_safetensors(path), read_facts(path)
    if facts.get("neurons") != _digest(bundle):
        raise EdgeError(f"{path}: it was trained for another bundle; train one for this, or remove the file.")
    names = [f"blk.{layer}.predictor_{part}" for layer in range(layout.layers) for part in _PARTS]
    if set(tensors) != set(names):
        odd = sorted(set(tensors) ^ set(names))[0]
        raise _damaged(path, f"{odd} is {'missing' if odd in names else 'not part of it'}")
    rank = tensors[names[0]].shape[0]
    shapes = {"down": (rank, layout.hidden), "up": (layout.neurons, rank), "bias": (layout.neurons,)}
    found = {}
    for name in names:
        part, tensor = name.rpartition("_")[2], tensors[name]
        kind, shape = _PARTS[part], shapes[part]
        if (tensor.type, tensor.shape) != (kind, shape):
            raise _damaged(path, f"{name} is {tensor.type} of shape {tensor.shape}, not {kind} of {shape}")
        found[name] = tensor.data.view(_KINDS[kind])
        if part == "bias" and not np.isfinite(found[name]).all():
            raise _damaged(path, f"{name} holds values that are not finite")
    return found


def _damaged(path: Path, why: str) -> EdgeError:
    return EdgeError(f"{path}: {why}; train the predictor again, or remove the file.")
