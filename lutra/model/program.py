"""The launches of one step, recorded once: embedding, layers, head.

A step is bound to fixed buffers and a fixed row block (`tile_m`), so running it is one native call; what changes from
step to step stands in `tokens` and `state`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lutra.compiler.launch import Step
from lutra.kernels import activations, adapt, argmax, choose, embed, kv, matmul_dense, matmul_trit, norm
from lutra.kernels.activations import Activations
from lutra.kernels.buffers import aligned
from lutra.kernels.cache import Cache
from lutra.kernels.pieces import Room
from lutra.kernels.tiles import TiledWeight, round_up
from lutra.model.buffers import COLUMN_BLOCK, Buffers
from lutra.model.config import ModelConfig
from lutra.model.weights import Inputs, LayerWeights, Linear, Weights


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
        return [step for stage in self.stages() for step in stage]

    def stages(self) -> list[list[Step]]:
        """The steps of `layers` in parts: the embedding, then attention and feed-forward of each layer in turn."""
        b = self.buffers
        stages: list[list[Step]] = [[embed.bind(self.weights.embed, b.tokens, b.residual, isa=self.isa)]]
        for index, layer in enumerate(self.weights.layers):
            stages += [self._attention(index, layer), self._feed_forward(layer)]
        return stages

    def head(self) -> list[Step]:
        """residual → logits and the best one, for head_state[NUM_ROWS] rows starting at row head_state[HEAD_ROW]."""
        b, head = self.buffers, self.weights.head
        inputs = self._inputs((head,), b.residual, self.weights.final_norm, b.head_state, source_row="head")
        matmuls = self._matmul(head, self.scratch.of(head.weight, b.residual), b.logits, b.head_state, "store")
        best = argmax.bind(b.logits, b.best, b.head_state, width=self.config.vocab_size, isa=self.isa)
        return [*inputs, *matmuls, best]

    def _attention(self, index: int, layer: LayerWeights) -> list[Step]:
        b, c = self.buffers, self.config
        cache = b.caches[index]
        steps = []
        for linears in sharing_inputs(layer.qkv):
            steps += self._inputs(linears, b.residual, layer.attn_norm, b.state)
            for linear in linears:
                source = self.scratch.of(linear.weight, b.residual)
                steps += self._linear(linear, source, b.residual, layer.attn_norm, b.qkv, "store")
        norms: dict[str, Any] = {"q_norm": layer.q_norm, "k_norm": layer.k_norm, "eps": c.norm_eps}
        options: dict[str, Any] = {"heads": c.num_heads, "isa": self.isa}
        steps += kv.bind_store(b.qkv, cache, b.queries, b.cos, b.sin, b.state, **options, **norms)
        options["room"] = self.scratch.room(cache, self.rows, c.num_heads)
        steps += kv.bind_attention(b.qkv, cache, b.queries, b.attended, b.state, **options)
        return steps + self._project(layer.o, b.attended, layer.attn_sub_norm)

    def _feed_forward(self, layer: LayerWeights) -> list[Step]:
        b, gate_up = self.buffers, layer.gate_up
        steps = self._inputs((gate_up,), b.residual, layer.ffn_norm, b.state)
        source = self.scratch.of(gate_up.weight, b.residual)
        steps += self._linear(gate_up, source, b.residual, layer.ffn_norm, b.gated, self.config.activation)
        return steps + self._project(layer.down, b.gated, layer.ffn_sub_norm)

    def _project(self, linear: Linear, x: np.ndarray, norm_weight: np.ndarray | None) -> list[Step]:
        """residual += linear(x), of the normalised x where the family has a norm there."""
        b = self.buffers
        reads_x = norm_weight is None and linear.weight.order == "dense" and linear.inputs is None
        source = x if reads_x else self.scratch.of(linear.weight, x)
        steps = [] if reads_x else self._inputs((linear,), x, norm_weight, b.state)
        return steps + self._linear(linear, source, x, norm_weight, b.residual, "add")

    def _inputs(
        self,
        linears: tuple[Linear, ...],
        x: np.ndarray,
        norm_weight: np.ndarray | None,
        state: np.ndarray,
        source_row: str = "all",
    ) -> list[Step]:
        """x normalised, in order, and quantised where a linear wants int8: once for each kind of input they need."""
        kinds = {self.scratch.kind(linear.weight): linear.weight for linear in linears}
        steps = []
        if norm_weight is not None and any(linear.inputs or linear.low_rank for linear in linears):
            x, steps, norm_weight = *self._normed(x, norm_weight, linears[0].weight.k, state), None
        if linears[0].inputs is not None:
            ordered = self.scratch.floats("ordered", x.shape)
            steps.append(self._in_order(linears[0].inputs, x, ordered, state))
            x = ordered
        for weight in kinds.values():
            target = self.scratch.of(weight, x)
            options: dict[str, Any] = {"width": weight.k, "source_row": source_row, "isa": self.isa}
            options["eps"] = self.config.norm_eps
            if isinstance(target, Activations):
                steps.append(norm.bind_quantize(x, target, state, weight=norm_weight, **options))
                if target.trits is not None:
                    blocks = [self._row_block(linear.weight) for linear in linears if linear.weight.order == "trit5"]
                    steps += matmul_trit.bind_inputs(target, state, blocks, isa=self.isa)
            elif norm_weight is None:
                steps.append(self._in_order(as_it_comes(weight.k), x, target, state))
            else:
                steps.append(norm.bind(x, norm_weight, target, state, **options))
        return steps

    def _normed(
        self, x: np.ndarray, norm_weight: np.ndarray, width: int, state: np.ndarray
    ) -> tuple[np.ndarray, list[Step]]:
        """x normalised, where something else than the weight reads it too."""
        normed = self.scratch.floats("normed", x.shape)
        options: dict[str, Any] = {"width": width, "eps": self.config.norm_eps, "isa": self.isa}
        return normed, [norm.bind(x, norm_weight, normed, state, **options)]

    def _in_order(self, inputs: Inputs, x: np.ndarray, y: np.ndarray, state: np.ndarray) -> Step:
        """y is x in the order and scale that a weight with side-cars wants."""
        return adapt.bind(x, inputs.perm, inputs.factors, y, state, isa=self.isa)

    def _linear(
        self, linear: Linear, source: Source, x: np.ndarray, norm_weight: np.ndarray | None, y: np.ndarray,
        epilogue: str,
    ) -> list[Step]:  # fmt: skip
        """y = epilogue(linear(source)); with a low-rank term, u @ (v @ x) is added before the bias.

        x   f32 [rows, stride] that `source` was made of, normalised first where there is a norm
        """
        state, low = self.buffers.state, linear.low_rank
        if low is None:
            return self._matmul(linear, source, y, state, epilogue)
        x = x if norm_weight is None else self.scratch.floats("normed", x.shape)
        thin, wide = (self.scratch.floats(name, (len(x), round_up(weight.padded_n, COLUMN_BLOCK)))
                      for name, weight in (("thin", low.v), ("wide", linear.weight)))  # fmt: skip
        last = matmul_dense.bind(
            low.u, thin, y, state, epilogue=epilogue, bias=linear.bias, column=linear.column, start=wide,
            tile_m=self._row_block(low.u), isa=self.isa,
        )  # fmt: skip
        alone = Linear(linear.weight)
        first = self._matmul(Linear(low.v), x, thin, state, "store")
        return [*first, *self._matmul(alone, source, wide, state, "store"), last]

    def _matmul(self, linear: Linear, source: Source, y: np.ndarray, state: np.ndarray, epilogue: str) -> list[Step]:
        *before, step = choose.steps(
            linear.weight, source, y, state, epilogue=epilogue, bias=linear.bias, column=linear.column,
            rows=self.rows, room=self.scratch.bytes, isa=self.isa,
        )  # fmt: skip
        return [*before, step if before else replace(step, stream=linear.weight.codes)]

    def _row_block(self, weight: TiledWeight) -> int:
        return choose.tile_m(weight, self.rows, self.isa)


def sharing_inputs(linears: tuple[Linear, ...]) -> list[tuple[Linear, ...]]:
    """Linears of one input, apart where each wants it in an order of its own: buffers are written just before use."""
    return [linears] if all(linear.inputs is None for linear in linears) else [(linear,) for linear in linears]


def as_it_comes(k: int) -> Inputs:
    """Inputs in their own order."""
    return Inputs(np.arange(k, dtype=np.int32), np.ones(k, np.float32))


Source = Activations | np.ndarray  # what a linear reads: int8 activations, or f32 [rows, stride]


class Scratch:
    """Inputs of linears, shared by all layers: one buffer per kind, written just before it is read."""

    def __init__(self, rows: int):
        self.rows = rows
        self._buffers: dict[Any, Source] = {}
        self._rooms: dict[Any, Room] = {}
        self._bytes: dict[int, np.ndarray] = {}

    @staticmethod
    def kind(weight: TiledWeight) -> Any:
        """What decides the form of a linear's input."""
        if weight.order == "dense":
            return "dense"
        assert weight.format is not None
        tables = weight.order if weight.order in ("lut", "trit5") else ""
        return (weight.format.activation_group, weight.format.group_size, tables, weight.padded_k)

    def of(self, weight: TiledWeight, x: np.ndarray) -> Source:
        """The buffer in which `weight` finds what became of x, f32 [rows, stride]."""
        key = (self.kind(weight), x.shape[1])
        if key not in self._buffers:
            self._buffers[key] = self._allocate(weight, x)
        return self._buffers[key]

    def floats(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An f32 buffer of this shape, for what stands between two kernels."""
        key = (name, shape)
        if key not in self._buffers:
            self._buffers[key] = aligned(shape, np.float32)
        buffer = self._buffers[key]
        assert isinstance(buffer, np.ndarray)
        return buffer

    def bytes(self, least: int) -> np.ndarray:
        """At least so many bytes, for what one matmul needs besides its inputs: tables, or codes."""
        size = 1 << (least - 1).bit_length()
        if size not in self._bytes:
            self._bytes[size] = aligned(size, np.uint8)
        return self._bytes[size]

    def room(self, cache: Cache, rows: int, heads: int) -> Room:
        """What attention of at most `rows` rows works in."""
        key = (cache.kind, cache.keys.shape, rows, heads)
        if key not in self._rooms:
            self._rooms[key] = kv.room_for(cache, rows, heads)
        return self._rooms[key]

    def _allocate(self, weight: TiledWeight, x: np.ndarray) -> Source:
        if weight.order == "dense":
            return aligned(x.shape, np.float32)
        assert weight.format is not None
        return activations.allocate(
            self.rows,
            weight.k,
            weight.format,
            with_tables=weight.order == "lut",
            with_trits=weight.order == "trit5",
        )
