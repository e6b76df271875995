"""What every weight of a model costs in every format: bytes, error, time.  The table that bits are allocated by.

The error of a unit (model/inputs.py) in a format is one of METHODS:

output   |x (W - Q).T|**2 / |x W.T|**2, tr(E H E.T) over what it would be of the whole weight: no run of the model, but
         errors of different layers do not mean the same
loss     how much a loss grows when this unit alone is quantised: one run per unit and format
scaled   the loss with the roughest format, one run per unit; the other formats in proportion to their output error,
         since the loss is quadratic in the error to second order (HAWQ-V2, arXiv 1911.03852)

The loss is what the caller measures.  Divergence from the model as it was is never negative and has no part of first
order; the likelihood of a text has one, of random sign.  A growth below zero counts as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from lutra.compiler import targets
from lutra.compiler.launch import Workers
from lutra.errors import RequestError
from lutra.files.model_file import LazyTensor
from lutra.formats.catalog import find
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.kernels import choose
from lutra.kernels.plan import plan_for
from lutra.model.config import ModelConfig
from lutra.model.inputs import HEAD, NUM_ROWS, collect, units
from lutra.model.kinds import Kind
from lutra.model.layer_errors import check_is_unpacked, matrix, sizes
from lutra.model.load import Model, Progress, Reader, layer_weights
from lutra.model.random import linear_sizes
from lutra.model.transformer import Transformer
from lutra.model.trial import Alternation, Option, Trial
from lutra.model.weights import Weights, tile, widen
from lutra.quantize.methods import METHODS as QUANTISERS
from lutra.quantize.methods import method_for

METHODS = ("output", "loss", "scaled")
NUM_OUTPUTS = 128  # rows of a weight whose outputs are compared
Loss = Callable[[Transformer], float]  # nats per token, of a transformer that gives all logits
Quantise = Callable[[str, np.ndarray, Format], QTensor]  # (tensor's name, f32 [N, K], format)
Costs = dict[str, dict[str, tuple[float, float]]]  # unit → format → bytes, error
Times = dict[str, dict[str, float]]  # unit → format → microseconds
Table = dict[str, dict[str, tuple[float, float, float]]]  # unit → format → bytes, error, microseconds


def by_default(name: str, w: np.ndarray, format: Format) -> QTensor:
    """The quantiser that needs nothing but the weight and suits the format."""
    return QUANTISERS[method_for(format)].quantise(w, format)


@dataclass(frozen=True)
class Swap:
    """A model of which some units are exchanged, to see what becomes of its loss.

    context   of the runs that measure the loss
    made      tensors of the last allocation, and what quantised them: the next one mostly has the same
    """

    model: Model
    context: int
    loss: Loss
    made: dict[str, tuple[Quantise, QTensor]] = field(default_factory=dict)

    def baseline(self) -> float:
        return self.loss(self._scorer(self.model.weights))

    def loss_with(self, tensors: Mapping[str, QTensor]) -> float:
        """The loss with these tensors instead of the model's."""
        return self.loss(self._scorer(self.weights_with(tensors)))

    def loss_of(self, allocation: Mapping[str, str], quantise: Quantise) -> float:
        """The loss with every unit in the format it is given: what the table only adds up."""
        reader, wanted = Reader(self.model.file, self.model.config, set()), per_tensor(allocation, self.model.config)

        def made(name: str) -> QTensor:
            by, known = self.made.get(name, (None, None))
            if known is not None and by is quantise and known.format.name == wanted[name]:
                return known
            return quantise(name, widen(matrix(reader, name)), find(wanted[name]))

        with ThreadPoolExecutor(self.model.transformer.workers.threads) as pool:
            tensors = dict(zip(wanted, pool.map(made, wanted), strict=True))
        self.made.update({name: (quantise, tensor) for name, tensor in tensors.items()})
        return self.loss_with(tensors)

    def weights_with(self, tensors: Mapping[str, QTensor]) -> Weights:
        """The model's weights, but for some tensors; layers without any of them are shared."""
        weights, file = self.model.weights, self.model.file
        swapped = {name: _in_memory(file.tensors[name], tensor) for name, tensor in tensors.items() if name != HEAD}
        reader = Reader(replace(file, tensors={**file.tensors, **swapped}), self.model.config, set())
        layers = list(weights.layers)
        for index in {int(name.split(".")[1]) for name in swapped}:
            layers[index] = layer_weights(reader, f"layers.{index}.")
        head = tile(tensors[HEAD]) if HEAD in tensors else weights.head
        return replace(weights, layers=layers, head=head)

    def _scorer(self, weights: Weights) -> Transformer:
        t = self.model.transformer
        return Transformer(
            t.config, weights, t.workers, self.context, all_logits=True, factors=t.factors, isa=t.isa, kv=t.kv,
            prefill_workers=t.prefill_workers,
        )  # fmt: skip


def _in_memory(tensor: LazyTensor, value: QTensor) -> LazyTensor:
    return replace(tensor, stored_type=value.format.name, load=lambda: value)


def measure(
    model: Model,
    windows: Sequence[Sequence[int]],
    formats: Sequence[Format],
    loss: Loss,
    method: str = "scaled",
    quantise: Quantise = by_default,
    with_head: bool = True,
    num_rows: int = NUM_ROWS,
    progress: Progress | None = None,
) -> Costs:
    """Bytes and error of every unit in every format.

    model     of floats, or of whatever is taken as the truth
    windows   token ids that the model reads, each from position 0: what linears meet is sampled there
    loss      measures a text; not called by method "output"
    quantise  is given some rows of a weight where only their outputs count, all where the model runs with it
    Raises RequestError for a method there is not, no formats, and packed files; FormatError as the quantiser does.
    """
    if method not in METHODS:
        raise RequestError(f"expected a method of {', '.join(METHODS)}, got {method!r}; choose one of them")
    if not formats:
        raise RequestError("expected formats to choose from, got none; name some")
    check_is_unpacked(model.file)
    inputs = collect(model.transformer, windows, num_rows)
    swap = Swap(model, max(map(len, windows)), loss)
    before = 0.0 if method == "output" else swap.baseline()
    reader = Reader(model.file, model.config, set())
    wanted, num_bytes = _members(model.config, with_head), unit_bytes(model.config, formats, with_head)
    costs: Costs = {}
    for index, (unit, names) in enumerate(wanted.items()):
        dense = {name: widen(matrix(reader, name)) for name in names}
        errors = _unit(dense, inputs[unit], formats, method, quantise, swap, before)
        costs[unit] = {name: (num_bytes[unit][name], errors[name]) for name in errors}
        if progress is not None:
            progress(f"sensitivity of {unit}", index + 1, len(wanted))
    return costs


def _unit(
    dense: Mapping[str, np.ndarray], x: np.ndarray, formats: Sequence[Format], method: str,
    quantise: Quantise, swap: Swap, before: float,
) -> dict[str, float]:  # fmt: skip
    """Format → error of one unit; of outputs, that of NUM_OUTPUTS rows of each weight, evenly spaced."""
    some = {name: w[:: -(-len(w) // NUM_OUTPUTS)] for name, w in dense.items()}
    signal = sum(_square(x @ w.T) for w in some.values()) or 1.0

    def noise(format: Format) -> float:
        return sum(_square(x @ (w - quantise(name, w, format).dequantize()).T) for name, w in some.items())

    output = {format.name: noise(format) / signal for format in formats}

    def increase(format: Format) -> float:
        tensors = {name: quantise(name, w, format) for name, w in dense.items()}
        return max(swap.loss_with(tensors) - before, 0.0)

    errors = output
    if method == "loss":
        errors = {format.name: increase(format) for format in formats}
    elif method == "scaled":
        roughest = max(formats, key=lambda format: output[format.name])
        grown = increase(roughest)
        errors = {name: grown * value / (output[roughest.name] or 1) for name, value in output.items()}
    return errors


def _square(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _members(config: ModelConfig, with_head: bool) -> dict[str, tuple[str, ...]]:
    """Unit → its tensors."""
    return {**units(config), **({HEAD: (HEAD,)} if with_head else {})}


def unit_bytes(config: ModelConfig, formats: Sequence[Format], with_head: bool = True) -> dict[str, dict[str, float]]:
    """Unit → format → bytes: what is known before anything is measured."""
    size = sizes(config)

    def stored(format: Format, names: Iterable[str]) -> float:
        each = (size[name.split(".")[-1]] for name in names)
        return float(sum(n * round(format.bits_per_weight(k) * k / 8) for n, k in each))

    members = _members(config, with_head).items()
    return {unit: {format.name: stored(format, names) for format in formats} for unit, names in members}


def unit_sizes(config: ModelConfig, with_head: bool = True) -> dict[str, tuple[int, int]]:
    """(N, K) of every unit as one matrix."""
    layer = linear_sizes(config)
    found = {unit: layer[unit.split(".")[-1]] for unit in units(config)}
    return {**found, HEAD: sizes(config)[HEAD]} if with_head else found


def num_weights(config: ModelConfig, with_head: bool = True) -> int:
    """Weights of all units: what bits per weight are counted over."""
    every = sizes(config)
    inner = sum(n * k for name, (n, k) in every.items() if name != HEAD)
    return config.num_layers * inner + (every[HEAD][0] * every[HEAD][1] if with_head else 0)


def kernel_times(
    wanted: Mapping[str, tuple[int, int]], formats: Sequence[Format], rows: int, workers: Workers
) -> Times:
    """Measure every unit in every format on this computer, with `rows` rows of activations.

    wanted   of unit_sizes.  Units of one size are measured once, all formats in alternation; weights are random and,
             for one row, as many as the model has or as no cache holds
    Raises FormatError for a format that no kernel takes.
    """
    counts = {size: list(wanted.values()).count(size) for size in wanted.values()}
    times = {size: _times(*size, formats, rows, count, workers) for size, count in counts.items()}
    return {unit: times[size] for unit, size in wanted.items()}


def _times(n: int, k: int, formats: Sequence[Format], rows: int, count: int, workers: Workers) -> dict[str, float]:
    trials = [Trial(Kind(format, n, k, count), choose.family(format, n, k), rows, count) for format in formats]
    programs = [trial.program(_usual(trial)) for trial in trials]
    rounds = Alternation(workers)(programs, rows)
    return {
        format.name: trial.weight_us(seconds) * n / trial.n
        for format, trial, seconds in zip(formats, trials, rounds, strict=True)
    }


def _usual(trial: Trial) -> Option:
    """The row block and plan that a model would run with."""
    rows = choose.tile_m(trial.copies[0], trial.rows)
    return Option(rows, plan_for(trial.order, targets.choose().isa, rows))


def predicted_times(costs: Costs, gb_per_s: float) -> Times:
    """What reading the bytes once takes: the time of one row where nothing else holds up the memory."""
    return {
        unit: {name: num_bytes / gb_per_s * 1e-3 for name, (num_bytes, _) in options.items()}
        for unit, options in costs.items()
    }


def join(costs: Costs, times: Times) -> Table:
    """The table that quantize/allocate.py solves."""
    return {
        unit: {name: (num_bytes, error, times[unit][name]) for name, (num_bytes, error) in options.items()}
        for unit, options in costs.items()
    }


def per_tensor(allocation: Mapping[str, str], config: ModelConfig) -> dict[str, str]:
    """Tensor → format, of an allocation to units."""
    members: dict[str, Iterable[str]] = {**units(config), HEAD: (HEAD,)}
    return {name: format for unit, format in allocation.items() for name in members[unit]}
