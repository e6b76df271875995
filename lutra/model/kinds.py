"""The kinds of weights a model has: what differs in format or size is tuned apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from lutra.formats.format import Format
from lutra.formats.vectors import VectorFormat
from lutra.kernels import choose
from lutra.kernels.tiles import TiledWeight
from lutra.kernels.tuned import DECODE, PREFILL
from lutra.model.config import ModelConfig
from lutra.model.random import linear_sizes
from lutra.model.weights import Weights


@dataclass(frozen=True)
class Kind:
    """Weights of a model that are alike.

    format   or the element type of a dense weight
    n, k     sizes
    count    how many the model has
    uses     DECODE, PREFILL or both: the head sees one row only
    """

    format: Format | str
    n: int
    k: int
    count: int = 1
    uses: tuple[str, ...] = (DECODE, PREFILL)

    @property
    def name(self) -> str:
        return self.format.name if isinstance(self.format, Format) else self.format

    @property
    def families(self) -> list[str]:
        """Kernel families that take it, the tables' first."""
        return choose.families(self.format) if isinstance(self.format, Format) else ["dense"]


def kinds_of(weights: Weights) -> list[Kind]:
    """The kinds of weights of a model; vectors have one way to run, and nothing to tune."""

    def kind(weight: TiledWeight) -> Kind:
        assert not isinstance(weight.format, VectorFormat)
        return Kind(weight.format or weight.dtype, weight.n, weight.k)

    inner = [x.weight for layer in weights.layers for x in (*layer.qkv, layer.o, layer.gate_up, layer.down)]
    counts = Counter(kind(weight) for weight in inner if weight.order != "vector")
    kinds = [replace(found, count=count) for found, count in counts.items()]
    head = kind(weights.head.weight)
    return kinds if head in counts else [*kinds, replace(head, uses=(DECODE,))]


def kinds_of_shape(config: ModelConfig, format: Format, head: Format | None = None) -> list[Kind]:
    """The kinds of weights of a model of this shape with all weights in `format`, or the head in its own."""
    sizes = Counter(linear_sizes(config).values())
    kinds = [Kind(format, n, k, config.num_layers * times) for (n, k), times in sizes.items()]
    return [*kinds, Kind(head or format, config.vocab_size, config.hidden_size, uses=(DECODE,))]
