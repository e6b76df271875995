"""What the linears of a model see on a text: layer by layer, with the matrices of one layer in memory at a time.

A `Stream` holds the residual of all calibration tokens and takes it through one layer after another.  Before a layer's
linears are used, whoever quantises them is shown their inputs, in the order in which GPTQ's `true_sequential` takes
them: q, k, v | o | gate, up | down.  Which matrices the layer then computes with, float or quantised, is the reader's
choice: it is asked for them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lutra.errors import RequestError
from lutra.model import float_layer
from lutra.model.angles import cos_sin
from lutra.model.config import ModelConfig

CHUNK_ROWS = 2048  # tokens that go through a linear together
SAMPLE_ROWS = 1024  # of the inputs, kept as they are
KEEP_BYTES = 1 << 29  # of gated products; more are computed twice
F64_MOST = 4096  # widest inputs whose products are summed in f64; beyond that f32, for the memory

STAGES = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


@dataclass(frozen=True)
class Inputs:
    """What linears that share an input saw.

    hessian   float [K, K]   mean of x.T x, f64 up to K = 4096, then f32
    mean      f32 [K]        mean |x|
    sample    f32 [S, K]     up to 1024 rows, evenly spaced
    """

    hessian: np.ndarray
    mean: np.ndarray
    sample: np.ndarray


class LayerReader(Protocol):
    """Delivers one layer: matrices f32 [N, K], vectors f32 or None; names as "q", "attn_norm", "q.bias"."""

    def matrix(self, name: str) -> np.ndarray: ...

    def vector(self, name: str) -> np.ndarray | None: ...


Seen = Callable[[tuple[str, ...], Inputs], None]


def cut(tokens: Sequence[int], count: int, length: int, bos_id: int | None) -> list[list[int]]:
    """Take `count` windows of `length` tokens from a text, evenly spaced; fewer where it has not so many.

    bos_id   in front of each window, within its length; None: nothing is
    raises   RequestError   a text without a single token

    >>> cut([10, 11, 12, 13, 14, 15, 16], 2, 3, None)
    [[10, 11, 12], [13, 14, 15]]
    """
    begin = [] if bos_id is None else [bos_id]
    room = max(1, length - len(begin))
    whole = max(1, len(tokens) // room)
    starts = [index * whole // min(count, whole) * room for index in range(min(count, whole))]
    windows = [[*begin, *tokens[start : start + room]] for start in starts]
    if not tokens:
        raise RequestError("expected a text to calibrate on, got one without tokens; give a longer one")
    return windows


class Stream:
    """The residual of calibration tokens.

    windows      token ids, each window read by itself
    embedding    gives f32 [M, hidden] for M token ids
    frequencies  float64 [head_dim / 2], of rope.rope_frequencies
    """

    def __init__(
        self,
        config: ModelConfig,
        windows: Sequence[Sequence[int]],
        embedding: Callable[[np.ndarray], np.ndarray],
        frequencies: np.ndarray,
    ) -> None:
        self.config, self.lengths = config, [len(window) for window in windows]
        tokens = np.concatenate([np.asarray(window, np.int64) for window in windows])
        self.x = np.ascontiguousarray(embedding(tokens), np.float32)  # [M, hidden]
        positions = np.arange(max(self.lengths))[:, None] * frequencies
        cos, sin = cos_sin(positions)
        self.angles = cos.astype(np.float32), sin.astype(np.float32)
        self.chunks = _chunks(self.lengths)

    def layer(self, read: LayerReader, seen: Seen | None = None) -> None:
        """Take the residual through one layer; `seen` is shown the inputs of its linears, stage by stage."""
        normed = self._normed(read, "attn_norm")
        if seen is not None:
            seen(STAGES[0], self._collect(normed(rows) for rows, _ in self.chunks))
        attended = self._attended(read, normed)
        if seen is not None:
            seen(STAGES[1], self._collect(attended[rows] for rows, _ in self.chunks))
        self._add(read, "o", (attended[rows] for rows, _ in self.chunks))
        del attended
        normed = self._normed(read, "ffn_norm")
        if seen is not None:
            seen(STAGES[2], self._collect(normed(rows) for rows, _ in self.chunks))
        gated: Iterable[np.ndarray] = self._gated(read, normed)
        if seen is not None:
            keeps = len(self.x) * self.config.ffn_size * 4 <= KEEP_BYTES
            gated = list(gated) if keeps else gated
            seen(STAGES[3], self._collect(gated))
            gated = gated if keeps else self._gated(read, normed)
        self._add(read, "down", gated)

    def _normed(self, read: LayerReader, name: str) -> Callable[[slice], np.ndarray]:
        weight = _present(read.vector(name))
        return lambda rows: float_layer.norm(self.x[rows], weight, self.config.norm_eps)

    def _attended(self, read: LayerReader, normed: Callable[[slice], np.ndarray]) -> np.ndarray:
        config = self.config
        weights = [(read.matrix(name), read.vector(f"{name}.bias")) for name in STAGES[0]]
        norms = read.vector("q_norm"), read.vector("k_norm")
        sub_norm = read.vector("attn_sub_norm")
        out = np.empty((len(self.x), config.num_heads * config.head_dim), np.float32)
        for rows, lengths in self.chunks:
            x = normed(rows)
            q, k, v = (_linear(x, weight, bias) for weight, bias in weights)
            attended = float_layer.attend(config, q, k, v, lengths, self.angles, norms)
            out[rows] = attended if sub_norm is None else float_layer.norm(attended, sub_norm, config.norm_eps)
        return out

    def _gated(self, read: LayerReader, normed: Callable[[slice], np.ndarray]) -> Iterator[np.ndarray]:
        """Inputs of `down`, chunk by chunk."""
        config, sub_norm = self.config, read.vector("ffn_sub_norm")
        gate, up = read.matrix("gate"), read.matrix("up")
        for rows, _ in self.chunks:
            x = normed(rows)
            gated = float_layer.gate(config, x @ gate.T, x @ up.T)
            yield gated if sub_norm is None else float_layer.norm(gated, sub_norm, config.norm_eps)

    def _add(self, read: LayerReader, name: str, inputs: Iterable[np.ndarray]) -> None:
        weight, bias = read.matrix(name), read.vector(f"{name}.bias")
        for (rows, _), x in zip(self.chunks, inputs, strict=True):
            self.x[rows] += _linear(x, weight, bias)

    def _collect(self, chunks: Iterable[np.ndarray]) -> Inputs:
        """Sum up what passes by; every array is looked at once."""
        total, stride = len(self.x), -(-len(self.x) // SAMPLE_ROWS)
        hessian = mean = None
        sample, first = [], 0
        for x in chunks:
            if hessian is None or mean is None:
                k = x.shape[1]
                hessian = np.zeros((k, k), np.float64 if k <= F64_MOST else np.float32)
                mean = np.zeros(k)
            hessian += x.T @ x
            mean += np.abs(x).sum(0, dtype=np.float64)
            sample.append(x[-first % stride :: stride].copy())
            first += len(x)
        assert hessian is not None and mean is not None
        hessian /= total
        return Inputs(hessian, (mean / total).astype(np.float32), np.concatenate(sample))


def _chunks(lengths: Sequence[int]) -> list[tuple[slice, list[int]]]:
    """Put whole windows together, up to CHUNK_ROWS tokens or one window."""
    chunks: list[tuple[slice, list[int]]] = []
    start = 0
    held: list[int] = []
    for length in lengths:
        if held and sum(held) + length > CHUNK_ROWS:
            chunks.append((slice(start, start + sum(held)), held))
            start, held = start + sum(held), []
        held.append(length)
    return [*chunks, (slice(start, start + sum(held)), held)]


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    y: np.ndarray = x @ weight.T
    return y if bias is None else y + bias


def _present(vector: np.ndarray | None) -> np.ndarray:
    assert vector is not None
    return vector
