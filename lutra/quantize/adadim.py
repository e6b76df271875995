"""AdaDim: groups along inputs, as usual, or along outputs, whichever does less harm to this layer.

An input that is an outlier spoils every group it lies in.  Groups along outputs, of one input each, leave the harm
with that input: scale s[n // g, k].  Which way is better depends on the layer, so both are tried and the smaller error
of the outputs on calibration inputs decides.

A weight with groups along outputs runs in the usual kernels, g rows at a time: the scales of these rows stand in front
of their inputs, W[n, k] = 1 * code * s[k], which `row_blocks` spells out as side-cars.

Source   AdaDim, arXiv 2309.15531, section 4
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted
from lutra.quantize.quality import output_error
from lutra.quantize.rounding import as_finite_f32


@dataclass(frozen=True)
class Oriented:
    """A weight [N, K], groups along inputs, or, `per_input`, the QTensor of its transpose [K, N]."""

    weight: QTensor
    per_input: bool

    def dequantize(self) -> np.ndarray:
        """Return f32 [N, K]."""
        values = self.weight.dequantize()
        return np.ascontiguousarray(values.T) if self.per_input else values

    def row_blocks(self) -> list[Adapted]:
        """Return the weight as runs of rows with one scale per input, stacked along N: the same values, bit for bit.

        raises   FormatError   groups along inputs; an offset, which a scale of inputs cannot move; other than one f16,
                               bf16 or f32 scale
        """
        form = self.weight.format
        if not self.per_input or form.offset != "none" or form.terms > 1 or form.levels != "uniform":
            raise FormatError(f"{form.name}: expected groups along outputs, evenly spaced around a constant, got "
                              "others; keep the weight as it is")  # fmt: skip
        codes, scales = self.weight.codes().T, self.weight.scale_values()
        plain = (
            catalog.ternary()
            if form.alphabet == "trit"
            else (catalog.int8(0, zero=form.zero) if form.bits == 8 else catalog.planes(form.bits, 0, zero=form.zero))
        )
        blocks = []
        for group, rows in enumerate(_runs(len(codes), form.group_size)):
            some = np.ascontiguousarray(codes[rows])
            weight = QTensor.from_codes(plain, some, np.ones((len(some), 1), np.float32))
            blocks.append(Adapted(weight, input_scale=np.ascontiguousarray(scales[:, group])))
        return blocks


def adadim(w: np.ndarray, format: Format, quantise: Callable[[np.ndarray, Format], QTensor],
           hessian: np.ndarray) -> Oriented:  # fmt: skip
    """Quantise both ways and keep the one with the smaller error of outputs.

    w         float [N, K]
    quantise  any quantiser of the weight alone
    hessian   float [K, K], mean of x.T x over calibration tokens, or its diagonal [K]
    raises    FormatError    as the quantiser does

    >>> from lutra.quantize.rounding import round_to_nearest
    >>> w = np.array([[100.0, 0.1, 0.2, 0.3], [100.0, 0.3, 0.1, 0.2]], np.float32)      # input 0 is an outlier
    >>> adadim(w, catalog.planes(4, 0), round_to_nearest, np.ones(4)).per_input
    True
    """
    w = as_finite_f32(w)
    tries = [Oriented(quantise(w, format), False), Oriented(quantise(np.ascontiguousarray(w.T), format), True)]
    return min(tries, key=lambda tried: output_error(w, tried.dequantize(), hessian))


def _runs(n: int, group_size: int) -> list[slice]:
    step = group_size or n
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]
