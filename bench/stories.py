"""Two small real models in plain float32 NumPy, and how well they predict a text: the ground the quantisers meet on.

stories260K          llama2.c checkpoint of version 0: f32, SiLU, groups of 32 (its rows have 64 and 172 weights)
stories2M_relu_q80   version 2: int8 in groups of 64, whose values are the reference; groups of 64.  It subtracts 1 and
                     clips below 0 after the norm of each block, and its activation is max(x - 1/4, 0)

Rotary embedding turns neighbours (2i, 2i + 1), as the files have it.  Activations stay float32.  Loss is measured on 24
excerpts of 700 characters; calibration sees 64 others.  Sources: llama2.c, export.py; the relu model: runq.c beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutra.model.spm import BYTE, CONTROL, NORMAL, UNKNOWN, SentencePiece

TEXT = "text/tinystories_sample/tiny_stories_944k.txt"
EXCERPT = 700  # characters
NUM_EXCERPTS = 24
NUM_CALIBRATION = 64
LINEARS = ("q", "k", "v", "o", "gate", "down", "up")  # in the order of the file
NORM_EPS = 1e-5

Weights = dict[str, np.ndarray]
Watch = Callable[[str, np.ndarray], None]


@dataclass(frozen=True)
class Story:
    """A model.

    sizes           "dim", "hidden", "layers", "heads", "kv_heads", "vocab"
    weights         "embed", "final_norm" and "layers.0.q", ...: f32, matrices [N, K]
    norm_shift      taken from the norms of blocks before max(., 0); None: they stay as they are
    pieces, scores  of the vocabulary
    """

    name: str
    sizes: Mapping[str, int]
    weights: Weights
    norm_shift: float | None
    pieces: list[str]
    scores: list[float]
    group_size: int

    def linears(self) -> Iterator[str]:
        """Names of the matrices that are quantised: all but the embedding, which is the head too."""
        return (f"layers.{layer}.{name}" for layer in range(self.sizes["layers"]) for name in LINEARS)

    def excerpts(self, data: Path, first: int = 0, count: int = NUM_EXCERPTS) -> list[list[int]]:
        """Token ids of neighbouring excerpts of the text, each behind a BOS."""
        text = (data / TEXT).read_text("utf-8")
        types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(self.pieces) - 259)]
        encoder = SentencePiece(self.pieces, self.scores, types)
        starts = range(first * EXCERPT, (first + count) * EXCERPT, EXCERPT)
        return [[1, *encoder.encode(text[start : start + EXCERPT])] for start in starts]


def stories260k(data: Path) -> Story:
    """Read stories260K.bin and its vocabulary."""
    folder = data / "models" / "stories260K"
    raw = np.fromfile(folder / "stories260K.bin", np.uint8)
    sizes = _sizes(raw[:28])
    take = _Taker(raw[28:])
    shapes = _shapes(sizes)
    weights = {"embed": take.floats(sizes["vocab"], sizes["dim"])}
    norms = {"attn_norm": take.floats(sizes["layers"], sizes["dim"])}
    linears = {name: take.floats(sizes["layers"], *shapes[name]) for name in LINEARS[:4]}
    norms["ffn_norm"] = take.floats(sizes["layers"], sizes["dim"])
    linears |= {name: take.floats(sizes["layers"], *shapes[name]) for name in LINEARS[4:]}
    weights["final_norm"] = take.floats(sizes["dim"])
    weights |= _by_layer(norms | linears)
    return Story("260K", sizes, weights, None, *_vocabulary(folder / "tok512.bin"), group_size=32)


def stories2m(data: Path) -> Story:
    """Read stories2M_relu_q80.bin and its vocabulary."""
    folder = data / "models" / "stories2M_relu_q80"
    raw = np.fromfile(folder / "stories2M_relu_q80.bin", np.uint8)
    assert raw[:8].tobytes() == b"24ka\x02\0\0\0"
    sizes = _sizes(raw[8:36])
    take = _Taker(raw[256:])
    norms = {name: take.floats(sizes["layers"], sizes["dim"]) for name in ("attn_norm", "ffn_norm")}
    weights = {"final_norm": take.floats(sizes["dim"]), "embed": take.bytes64(sizes["vocab"], sizes["dim"])}
    shapes = _shapes(sizes)
    layers = range(sizes["layers"])
    linears = {name: np.stack([take.bytes64(*shapes[name]) for _ in layers]) for name in LINEARS}
    weights |= _by_layer(norms | linears)
    return Story("2M", sizes, weights, 1.0, *_vocabulary(folder / "tok4096.bin"), group_size=64)


def logits(story: Story, weights: Weights, tokens: list[int], watch: Watch | None = None) -> np.ndarray:
    """Compute f32 [len(tokens), vocab]; `watch` sees (name, x [M, K]) of every linear."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        if watch is not None:
            watch(name, x)
        return x @ weights[name].T

    x = weights["embed"][tokens]
    for layer in range(story.sizes["layers"]):
        x = x + _attention(
            story, f"layers.{layer}.", _block_norm(story, x, weights[f"layers.{layer}.attn_norm"]), linear
        )
        x = x + _feed_forward(
            story, f"layers.{layer}.", _block_norm(story, x, weights[f"layers.{layer}.ffn_norm"]), linear
        )
    return _norm(x, weights["final_norm"]) @ weights["embed"].T


def losses(story: Story, weights: Weights, excerpts: list[list[int]]) -> np.ndarray:
    """Nats of every predicted token, f64."""
    nats = []
    for tokens in excerpts:
        scores = logits(story, weights, tokens)[:-1].astype(np.float64)
        scores -= scores.max(-1, keepdims=True)
        nats.append(np.log(np.exp(scores).sum(-1)) - scores[np.arange(len(scores)), tokens[1:]])
    return np.concatenate(nats)


def inputs(story: Story, weights: Weights, excerpts: list[list[int]]) -> Weights:
    """What every linear sees while the model reads the excerpts: name -> f32 [tokens, K]."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in story.linears()}
    for tokens in excerpts:
        logits(story, weights, tokens, lambda name, x: seen[name].append(x))
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def _attention(story: Story, p: str, x: np.ndarray, linear: Callable[[str, np.ndarray], np.ndarray]) -> np.ndarray:
    m, heads, kv_heads = len(x), story.sizes["heads"], story.sizes["kv_heads"]
    q = _rotate(linear(p + "q", x).reshape(m, heads, -1))
    k = _rotate(linear(p + "k", x).reshape(m, kv_heads, -1)).repeat(heads // kv_heads, 1)
    v = linear(p + "v", x).reshape(m, kv_heads, -1).repeat(heads // kv_heads, 1)
    q, k, v = q.swapaxes(0, 1), k.swapaxes(0, 1), v.swapaxes(0, 1)  # [heads, M, head_dim]
    scores = q @ k.swapaxes(1, 2) / np.float32(np.sqrt(q.shape[-1]))
    scores[:, np.triu(np.ones((m, m), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return linear(p + "o", (shares @ v).swapaxes(0, 1).reshape(m, -1))


def _feed_forward(story: Story, p: str, x: np.ndarray, linear: Callable[[str, np.ndarray], np.ndarray]) -> np.ndarray:
    gate, up = linear(p + "gate", x), linear(p + "up", x)
    act = gate / (1 + np.exp(-gate)) if story.norm_shift is None else np.maximum(gate - np.float32(0.25), 0)
    return linear(p + "down", act * up)


def _block_norm(story: Story, x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    normed = _norm(x, gain)
    return normed if story.norm_shift is None else np.maximum(normed - np.float32(story.norm_shift), 0)


def _norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return gain * (x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(NORM_EPS)))


def _rotate(x: np.ndarray) -> np.ndarray:
    pairs = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(pairs) / pairs)  # [M, pairs]
    turn = np.exp(1j * angle)[:, None]
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * turn
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape).astype(np.float32)


def _sizes(raw: np.ndarray) -> dict[str, int]:
    """The seven int32 of a header; a negative vocabulary says that the head is apart."""
    names = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
    sizes = dict(zip(names, raw.view(np.int32).tolist(), strict=True))
    assert sizes["vocab"] > 0
    return sizes


def _shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    dim, hidden = sizes["dim"], sizes["hidden"]
    kv_dim = dim // sizes["heads"] * sizes["kv_heads"]
    return {"q": (dim, dim), "k": (kv_dim, dim), "v": (kv_dim, dim), "o": (dim, dim),
            "gate": (hidden, dim), "down": (dim, hidden), "up": (hidden, dim)}  # fmt: skip


def _by_layer(stacked: Weights) -> Weights:
    """Name every layer's part of stacked tensors."""
    return {f"layers.{i}.{name}": part for name, parts in stacked.items() for i, part in enumerate(parts)}


def _vocabulary(path: Path) -> tuple[list[str], list[float]]:
    """Read a llama2.c tokenizer: int32, then float32 score, int32 length and the bytes of every piece."""
    raw, at = path.read_bytes(), 4
    pieces, scores = [], []
    while at < len(raw):
        score, length = np.frombuffer(raw, "<f4", 1, at)[0], int(np.frombuffer(raw, "<i4", 1, at + 4)[0])
        pieces.append(raw[at + 8 : at + 8 + length].decode("utf-8", "replace").replace(" ", "\u2581"))
        scores.append(float(score))
        at += 8 + length
    return pieces, scores


class _Taker:
    """Reads tensors one after another."""

    def __init__(self, raw: np.ndarray) -> None:
        self._raw, self._at = raw, 0

    def _take(self, num_bytes: int) -> np.ndarray:
        self._at += num_bytes
        return self._raw[self._at - num_bytes : self._at].copy()

    def floats(self, *shape: int) -> np.ndarray:
        return self._take(4 * int(np.prod(shape))).view(np.float32).reshape(shape)

    def bytes64(self, n: int, k: int) -> np.ndarray:
        """int8 [n * k], then an f32 scale per 64 of them."""
        codes = self._take(n * k).view(np.int8).astype(np.float32)
        return (codes.reshape(-1, 64) * self.floats(n * k // 64)[:, None]).reshape(n, k)
