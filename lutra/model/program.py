"""The launches of one step, recorded once: embedding, layers, head.

A step is bound to fixed buffers and a fixed row block (`tile_m`), so running it is one native call; what changes from
step to step stands in `tokens` and `state`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.compiler.launch import Step
from lutra.kernels import activations, attention, choose, embed, norm, rope
from lutra.kernels.activations import Activations
from lutra.kernels.tiles import TiledWeight
from lutra.model.buffers import Buffers
from lutra.model.config import ModelConfig
from lutra.model.weights import LayerWeights, Linear, Weights


@dataclass(frozen=True)
class Recorder:
    """Binds a decoder's kernels to buffers.

    rows    the most rows the recorded step will run with; it decides the row block of the matmuls
    isa     instruction set, None for the default
    """

    config: ModelConfig
    weights: Weights
    buffers: Buffers
    scratch: Scratch
    rows: int
    isa: str | None = None

    def layers(self) -> list[Step]:
        """tokens → residual, for state[NUM_ROWS] rows starting at state[POSITION]; fills the KV cache."""
        b = self.buffers
        steps = [embed.bind(self.weights.embed, b.tokens, b.residual, isa=self.isa)]
        for index, layer in enumerate(self.weights.layers):
            steps += self._attention(index, layer) + self._feed_forward(layer)
        return steps

    def head(self) -> list[Step]:
        """residual → logits, for head_state[NUM_ROWS] rows starting at row head_state[HEAD_ROW]."""
        b = self.buffers
        inputs = self._normed((self.weights.head,), b.residual, self.weights.final_norm, b.head_state, head=True)
        return inputs + [self._matmul(self.weights.head, b.residual, b.logits, b.head_state, "store", normed=True)]

    def _attention(self, index: int, layer: LayerWeights) -> list[Step]:
        b, c = self.buffers, self.config
        steps = self._normed(layer.qkv, b.residual, layer.attn_norm, b.state)
        steps += [self._matmul(linear, b.residual, b.qkv, b.state, "store", normed=True) for linear in layer.qkv]
        steps.append(
            rope.bind(
                b.qkv, b.cos, b.sin, b.keys[index], b.values[index], b.state,
                num_heads=c.num_heads, num_kv_heads=c.num_kv_heads, head_dim=c.head_dim,
                q_norm=layer.q_norm, k_norm=layer.k_norm, eps=c.norm_eps, isa=self.isa,
            )
        )  # fmt: skip
        steps.append(
            attention.bind(
                b.qkv, b.keys[index], b.values[index], b.attended, b.state,
                num_heads=c.num_heads, num_kv_heads=c.num_kv_heads, head_dim=c.head_dim, isa=self.isa,
            )
        )  # fmt: skip
        return steps + self._project(layer.o, b.attended, layer.attn_sub_norm, c.num_heads * c.head_dim)

    def _feed_forward(self, layer: LayerWeights) -> list[Step]:
        b = self.buffers
        steps = self._normed((layer.gate_up,), b.residual, layer.ffn_norm, b.state)
        steps.append(self._matmul(layer.gate_up, b.residual, b.gated, b.state, self.config.activation, normed=True))
        return steps + self._project(layer.down, b.gated, layer.ffn_sub_norm, self.config.ffn_size)

    def _project(self, linear: Linear, x: np.ndarray, weight: np.ndarray | None, width: int) -> list[Step]:
        """residual += linear(norm(x)); without a norm weight x goes in as it is."""
        b = self.buffers
        steps = self._normed((linear,), x, weight, b.state)
        is_dense_as_is = weight is None and linear.weight.format is None
        return steps + [self._matmul(linear, x, b.residual, b.state, "add", normed=not is_dense_as_is)]

    def _normed(
        self, linears: tuple[Linear, ...], x: np.ndarray, weight: np.ndarray | None, state: np.ndarray, head: bool = False
    ) -> list[Step]:
        """What the linears read: one normalised (and quantised) copy of x for each kind of input they need."""
        steps = {}
        for linear in linears:
            form = linear.weight
            if form.format is None and weight is None:
                continue
            width = form.k
            if form.format is None:
                out = self.scratch.dense(x)
                step = lambda: norm.rms_norm(x, weight, out, state, width=width, eps=self.config.norm_eps, head=head, isa=self.isa)  # noqa: E731, B023
            else:
                quantised = self.scratch.quantised(form)
                step = lambda: norm.quantize(x, weight, quantised, state, width=width, eps=self.config.norm_eps, head=head, isa=self.isa)  # noqa: E731, B023
            steps.setdefault(self.scratch.key(form), step)
        return [step() for step in steps.values()]

    def _matmul(
        self, linear: Linear, x: np.ndarray, y: np.ndarray, state: np.ndarray, epilogue: str, normed: bool
    ) -> Step:
        form = linear.weight
        source = self.scratch.quantised(form) if form.format is not None else self.scratch.dense(x) if normed else x
        return choose.bind(
            form, source, y, state, epilogue=epilogue, bias=linear.bias, column=linear.column,
            tile_m=choose.tile_m(form, self.rows, self.isa), isa=self.isa,
        )  # fmt: skip


class Scratch:
    """Inputs of linears, shared by all layers: one buffer per kind, written just before it is read."""

    def __init__(self, rows: int):
        self.rows = rows
        self._quantised: dict[object, Activations] = {}
        self._dense: dict[int, np.ndarray] = {}

    @staticmethod
    def key(weight: TiledWeight) -> object:
        """What decides the form of a linear's input."""
        if weight.format is None:
            return ("dense",)
        f = weight.format
        return (f.activation_group, f.group_size, weight.order == "lut", weight.padded_k)

    def quantised(self, weight: TiledWeight) -> Activations:
        key = self.key(weight)
        if key not in self._quantised:
            self._quantised[key] = activations.allocate(self.rows, weight.k, weight.format, with_tables=weight.order == "lut")
        return self._quantised[key]

    def dense(self, like: np.ndarray) -> np.ndarray:
        width = like.shape[1]
        if width not in self._dense:
            self._dense[width] = np.zeros_like(like)
        return self._dense[width]
