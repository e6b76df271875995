"""What to measure: a model's shape and formats, and the work it is given."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lutra import machine
from lutra.errors import CapacityError, RequestError
from lutra.formats import catalog
from lutra.kernels import choose
from lutra.kernels.cache import DEFAULT_KIND, check_kind, position_bytes
from lutra.kernels.tiles import DENSE_DTYPES
from lutra.model.config import ModelConfig
from lutra.model.random import Kind, random_config, random_weights, weight_bytes
from lutra.model.weights import Weights

AUTO = "auto"
ORDERS = (AUTO, *choose.TILE)
SPARE_BYTES = 512 << 20  # for activations, the roof's buffer, and Python


@dataclass(frozen=True)
class Model:
    """A model with random weights.

    shape    a name of model/random.SHAPES
    format   of every matrix: a name of formats/catalog, or f32, f16 or bf16
    head     that of the tied embedding and head; "" = format
    order    kernel family: one of ORDERS; AUTO for floats
    kv       what the KV cache holds, of kernels/cache.KINDS
    Raises RequestError, FormatError or KernelError for unknown names, and for an order that cannot hold the format.
    """

    shape: str
    format: str
    head: str = ""
    order: str = AUTO
    kv: str = DEFAULT_KIND

    def __post_init__(self) -> None:
        check_kind(self.kv)
        if self.order not in ORDERS:
            raise RequestError(f"expected an order of {', '.join(ORDERS)}, got {self.order!r}; leave --order out")
        random_config(self.shape)
        if self.order != AUTO and self.format in DENSE_DTYPES.values():
            raise RequestError(f"expected no order for {self.format}, which has one family, got {self.order}")
        weight_bytes(random_config("tiny"), **self._formats())

    @property
    def config(self) -> ModelConfig:
        return random_config(self.shape)

    def make(self, positions: int) -> Weights:
        """The weights, if they and a cache of so many positions fit into memory; else CapacityError."""
        c, free = self.config, machine.available_bytes()
        cache_bytes = positions * c.num_layers * position_bytes(self.kv, c.num_kv_heads, c.head_dim)
        needed = weight_bytes(c, **self._formats()) + cache_bytes + SPARE_BYTES
        if free is not None and needed > free:
            raise CapacityError(
                f"expected {needed / 1e9:.1f} GB of free memory for {self.shape} in {self.format}, "
                f"got {free / 1e9:.1f} GB; choose a smaller --shape or a --format of fewer bits"
            )
        return random_weights(c, **self._formats())

    def _formats(self) -> dict[str, Any]:
        order = None if self.order == AUTO else self.order
        return {"format": _kind(self.format), "order": order, "head": _kind(self.head) if self.head else None}


def _kind(name: str) -> Kind:
    """What a name means: an element type, or a format of the catalogue, else FormatError."""
    return name if name in DENSE_DTYPES.values() else catalog.find(name)


@dataclass(frozen=True)
class Case:
    """One row of the table: a model, and how many tokens of prompt and of answer on how many threads."""

    model: Model
    prompt: int
    gen: int
    threads: int


def models(
    shapes: Sequence[str], formats: Sequence[str], head: str = "", order: str = AUTO, kv: str = DEFAULT_KIND
) -> list[Model]:
    """Every combination, shapes slowest.  Raises as Model does, before anything is measured."""
    return [Model(shape, format, head, order, kv) for shape, format in itertools.product(shapes, formats)]


def cases(model: Model, prompts: Sequence[int], gen: int, threads: Sequence[int]) -> list[Case]:
    """Every combination for one model."""
    return [Case(model, prompt, gen, count) for count, prompt in itertools.product(threads, prompts)]
