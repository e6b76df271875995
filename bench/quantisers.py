"""Every quantiser on the same weights and the same text, beside reference numbers measured with other code.

    LUTRA_SHARED=../shared python bench/quantisers.py [--only data-free,calibrated,equal-bits,others] [--rows WORD]

Weights: normal and Student-t(5), 256 x 1024 in groups of 128; stories260K in groups of 32; stories2M in groups of 64.
Signal to noise is over all linears; "nats" are the loss per token more than the float model's on 24 excerpts of 700
characters (the first 128 tokens of each for stories2M), all linears replaced by their dequantised values.  Calibration
reads 64 other excerpts.  A cell is  ours (reference, difference);  ! marks more than 0.1 dB or 0.02 nats.

The reference's standard error of nats, excerpts paired, is 0.007 to 0.013 below 0.2 and 0.025 at 0.5.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import stories
import tables

from lutra.formats import catalog
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.formats.vectors import VectorFormat
from lutra.quantize import adadim, awq, codec, hadamard, kmeans, lorc, mixed, nested, ptqtp, ternary, vptq
from lutra.quantize.bcq import bcq
from lutra.quantize.bitmod import bitmod
from lutra.quantize.clip import clip
from lutra.quantize.gptq import Factor, gptq
from lutra.quantize.hlq import hlq
from lutra.quantize.quality import sqnr_db
from lutra.quantize.rounding import round_to_nearest

TOKENS = {"260K": None, "2M": 128}  # of an excerpt that are read
SHARING = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))  # linears with one input: AWQ scales them together
AWQ_SAMPLE = 4096  # tokens its search looks at
DB, NATS = 0.1, 0.02  # differences that are not marked

Values = Callable[[np.ndarray, int], np.ndarray]  # (w [N, K], group size) -> what it becomes


class Ground:
    """A model with its text: what a row is measured on."""

    def __init__(self, story: stories.Story, data: Path) -> None:
        self.story = story
        cut = TOKENS[story.name]
        self.excerpts = [tokens[:cut] for tokens in story.excerpts(data)]
        others = story.excerpts(data, stories.NUM_EXCERPTS, stories.NUM_CALIBRATION)
        self.calibration = [tokens[:cut] for tokens in others]

    @cached_property
    def loss(self) -> float:
        """Nats per token of the float model."""
        return float(stories.losses(self.story, self.story.weights, self.excerpts).mean())

    @cached_property
    def inputs(self) -> stories.Weights:
        """What every linear sees of the calibration text."""
        return stories.inputs(self.story, self.story.weights, self.calibration)

    @cached_property
    def hessians(self) -> stories.Weights:
        """x.T x of every linear, f64."""
        return {name: x.T.astype(np.float64) @ x / len(x) for name, x in self.inputs.items()}

    def measure(self, new: Callable[[str, np.ndarray], np.ndarray]) -> tuple[float, float]:
        """Replace every linear; return (dB over all of them, nats more than the float model)."""
        weights = dict(self.story.weights)
        weights |= {name: new(name, weights[name]) for name in self.story.linears()}
        before, after = (np.concatenate([w[name].ravel() for name in self.story.linears()])
                         for w in (self.story.weights, weights))  # fmt: skip
        return sqnr_db(before, after), float(stories.losses(self.story, weights, self.excerpts).mean()) - self.loss


@dataclass(frozen=True)
class Row:
    """A row of the first table.

    values     what a matrix becomes
    bits       bits per weight of [256, 1024] in groups of 128
    reference  dB normal, dB t5, dB 260K, nats 260K, dB 2M, nats 2M
    """

    label: str
    values: Values
    bits: float
    reference: tuple[float, ...]


def by_format(label: str, make: Callable[[int], Format], quantise: Callable[[np.ndarray, Format], QTensor],
              *reference: float) -> Row:  # fmt: skip
    """A row of a quantiser that writes a Format."""

    def values(w: np.ndarray, group: int) -> np.ndarray:
        return quantise(w, make(group)).dequantize()

    return Row(label, values, make(128).bits_per_weight(1024), reference)


def by_values(label: str, values: Values, bits: float, *reference: float) -> Row:
    """A row of anything else."""
    return Row(label, values, bits, reference)


def fixed(name: str) -> Callable[[int], Format]:
    """A format with a group size of its own."""
    return lambda group: catalog.find(name)


def asymmetric(bits: int) -> Callable[[int], Format]:
    return lambda group: catalog.planes(bits, group, offset="zeros")


def free(planes: int) -> Callable[[int], Format]:
    return lambda group: catalog.planes(1, group, terms=planes, offset="mins")


def levels(name: str, terms: int = 1) -> Callable[[int], Format]:
    return lambda group: catalog.table(name, group, terms=terms)


def trits(terms: int = 1, offset: str = "none") -> Callable[[int], Format]:
    return lambda group: catalog.ternary(group, terms=terms, offset=offset)


def symmetric(w: np.ndarray, form: Format) -> QTensor:
    return round_to_nearest(w, form, "symmetric")


def row_means(bits: int) -> Values:
    """A table for every row; above 3 bits the nested ones."""
    return lambda w, group: kmeans.row_tables(w, min(bits, 3), bits).values()


def minifloat(name: str) -> Values:
    return lambda w, group: codec.encode(w, name, 32, "floor").dequantize()


def data_free() -> Iterator[Row]:
    """The rows of the first table, in its order."""
    ceil = partial(codec.quantize, rule="ceil")
    four = lambda group: catalog.planes(4, group)  # noqa: E731
    yield by_format("RTN8 sym g32", fixed("int8-g32"), round_to_nearest, 45.42, 43.32, 45.61, -0.0003, 48.98, 0.0006)
    yield by_format("MXINT8 ceil g32", fixed("int8-g32-e8m0"), ceil, 41.59, 39.86, 42.14, 0.0005, 40.68, 0.0014)
    yield by_values("MXFP8 e4m3 floor g32", minifloat("e4m3"), 8.25, 30.65, 29.90, 30.44, 0.0074, 30.22, -0.0055)
    yield by_format("MXFP6 e2m3 floor g32", fixed("e2m3-g32-e8m0"), codec.quantize, 30.95, 30.27, 31.06, 0.0040, 30.59,
                    0.0030)  # fmt: skip
    yield by_values("MXFP6 e3m2 floor g32", minifloat("e3m2"), 6.25, 25.35, 25.19, 25.29, 0.0397, 25.25, 0.0163)
    yield by_format("RTN4 asym", asymmetric(4), round_to_nearest, 19.93, 17.39, 22.01, 0.0892, 20.14, 0.0860)
    yield by_format("RTN4 sym +-7", four, symmetric, 18.58, 15.15, 20.46, 0.1416, 17.70, 0.1717)
    yield by_format("Q4_0 rule (full range)", four, round_to_nearest, 19.69, 16.28, 21.48, 0.0814, 18.81, 0.0830)
    yield by_format("RTN4 asym + MSE clip", asymmetric(4), clip, 20.42, 17.83, 22.32, 0.0916, 20.46, 0.0330)
    yield by_format("NF4 f16 scale", levels("nf4"), codec.quantize, 20.39, 18.48, 21.21, 0.0915, 20.02, 0.0972)
    yield by_format("FP4 e2m1 f16 scale", levels("e2m1"), codec.quantize, 19.25, 18.10, 19.89, 0.1148, 19.20, 0.0966)
    yield by_format("IQ4_NL table absmax", levels("iq4nl"), codec.quantize, 20.48, 17.96, 21.37, 0.0778, 19.88, 0.0271)
    yield by_format("BitMoD-FP4", levels("bitmod4"), bitmod, 20.17, 19.32, 21.52, 0.0826, 20.52, 0.0567)
    yield by_format("MXFP4 floor g32", fixed("e2m1-g32-e8m0"), codec.quantize, 18.79, 17.89, 18.75, 0.1929, 18.28,
                    0.0478)  # fmt: skip
    yield by_format("MXFP4 ceil g32", fixed("e2m1-g32-e8m0"), ceil, 18.74, 17.48, 18.75, 0.1819, 17.98, 0.0709)
    yield by_format("NVFP4 g16", fixed("e2m1-g16-e4m3xf32-row"), codec.quantize, 20.43, 20.71, 20.44, 0.1138, 20.58,
                    0.0643)  # fmt: skip
    yield by_format("NVINT4 g16", fixed("planes4-g16-e4m3xf32-row"), codec.quantize, 21.28, 19.77, 21.43, 0.1111, 20.38,
                    0.0877)  # fmt: skip
    yield by_format("MXINT4 ceil g32", fixed("planes4-g32-e8m0"), ceil, 16.84, 14.74, 16.92, 0.3347, 15.56, 0.2385)
    yield by_format("HLQ 4 planes", free(4), hlq, 20.72, 18.40, 23.68, 0.0625, 21.17, 0.0465)
    yield by_values("row k-means 4b", row_means(4), 4.25, 19.73, 17.04, 20.51, 0.1242, 18.33, 0.0141)
    yield by_format("RTN3 asym", asymmetric(3), round_to_nearest, 13.31, 10.85, 15.42, 0.5895, 13.56, 0.5208)
    yield by_format("RTN3 asym + MSE clip", asymmetric(3), clip, 14.57, 12.17, 16.04, 0.4593, 14.40, 0.3530)
    yield by_format("BitMoD-FP3", levels("bitmod3"), bitmod, 14.19, 12.58, 15.74, 0.4633, 14.21, 0.3909)
    yield by_format("HLQ 3 planes", free(3), hlq, 14.79, 12.79, 17.05, 0.3247, 15.01, 0.2019)
    yield by_format("BCQ 3 (no zero)", levels("sign", 3), bcq, 14.51, 12.59, 15.54, 0.4902, 13.88, 0.2983)
    yield by_values("row k-means 3b", row_means(3), 3.125, 14.70, 12.55, 15.49, 0.4769, 14.38, 0.1482)
    yield by_format("PTQTP 2 trit planes", trits(2), ptqtp.trit_planes, 15.31, 12.80, 16.12, 0.4041, 14.43, 0.2704)
    yield by_format("RTN2 asym", asymmetric(2), round_to_nearest, 5.94, 4.45, 8.02, 4.3466, 6.56, 6.0729)
    yield by_format("RTN2 asym + MSE clip", asymmetric(2), clip, 8.66, 7.19, 9.66, 2.8932, 8.72, 3.4196)
    yield by_format("HLQ 2 planes", free(2), hlq, 9.57, 7.91, 10.63, 2.3724, 9.46, 1.4146)
    yield by_format("BCQ 2 (no zero)", levels("sign", 2), bcq, 9.42, 7.69, 9.98, 2.1788, 8.60, 1.8191)
    yield by_values("row k-means 2b", row_means(2), 2.0625, 9.34, 7.38, 10.02, 2.3110, 9.14, 1.3333)
    yield by_format("1 trit plane + LS scale", trits(), ptqtp.trit_planes, 7.26, 5.69, 7.66, 3.9265, 6.46, 4.2971)
    yield by_format("1 trit plane + zero", trits(1, "mins"), ptqtp.trit_planes, 7.41, 5.85, 8.10, 3.7043, 7.02, 2.7420)
    yield by_values("absmean ternary per tensor", lambda w, group: ternary.absmean(w).dequantize(), 1.58, 5.79, 4.34,
                    4.73, 5.6023, 4.12, 5.5437)  # fmt: skip
    yield by_format("BCQ 1 (sign)", levels("sign"), bcq, 4.43, 3.38, 4.68, 5.8420, 3.72, 4.7348)
    yield by_format("HLQ 1 plane", free(1), hlq, 4.52, 3.50, 5.00, 5.1989, 4.45, 5.6828)


def random_weights() -> tuple[np.ndarray, np.ndarray]:
    """Normal and Student-t(5) weights, f32 [256, 1024], from one generator as the reference drew them."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((256, 1024)).astype(np.float32), rng.standard_t(5, (256, 1024)).astype(np.float32)


def cell(ours: float, reference: float | None, tolerance: float) -> str:
    """Spell ours (reference, difference), marked where that is large."""
    digits = 2 if tolerance == DB else 3
    if reference is None:
        return f"{ours:.{digits}f}"
    difference = ours - reference
    mark = " !" if abs(difference) > tolerance else ""
    return f"{ours:.{digits}f} ({reference:.{digits}f}, {difference:+.{digits}f}){mark}"


def first_table(grounds: list[Ground], wanted: str) -> Iterator[str]:
    yield "| format | bpw g128 | normal dB | t5 dB | 260K dB | 260K nats | 2M dB | 2M nats |\n|---|" + 7 * "--:|"
    for row in (row for row in data_free() if wanted in row.label):
        found = [(sqnr_db(w, row.values(w, 128)), DB) for w in random_weights()]
        for ground in grounds:
            db, nats = ground.measure(lambda name, w, g=ground.story.group_size, row=row: row.values(w, g))
            found += [(db, DB), (nats, NATS)]
        cells = (cell(ours, reference, most) for (ours, most), reference in zip(found, row.reference, strict=True))
        yield f"| {row.label} | {row.bits:.2f} | {' | '.join(cells)} |"


Quantise = Callable[[np.ndarray, Format], QTensor]
Formats = Callable[[int], Callable[[int], Format]]  # bits -> group size -> format
Calibrated = Callable[[Ground, int, int], Callable[[str, np.ndarray], np.ndarray]]  # ground, bits, group -> new weights


def plain(quantise: Quantise, make: Formats) -> Calibrated:
    return lambda ground, bits, group: lambda name, w: quantise(w, make(bits)(group)).dequantize()


def with_gptq(base: Quantise, make: Formats, act_order: bool = False) -> Calibrated:
    def made(ground: Ground, bits: int, group: int) -> Callable[[str, np.ndarray], np.ndarray]:
        def new(name: str, w: np.ndarray) -> np.ndarray:
            factor = Factor.of(ground.hessians[name], act_order=act_order)
            return gptq(w, factor, make(bits)(group), base, act_order=act_order).dequantize()

        return new

    return made


def with_awq(quantise: Quantise) -> Calibrated:
    """Scale the inputs that linears share as plain rounding likes it best, quantise, and take the scale out again."""

    def made(ground: Ground, bits: int, group: int) -> Callable[[str, np.ndarray], np.ndarray]:
        form, weights, scales = asymmetric(bits)(group), ground.story.weights, {}
        for layer in range(ground.story.sizes["layers"]):
            for names in ([f"layers.{layer}.{name}" for name in shared] for shared in SHARING):
                x = ground.inputs[names[0]]
                some = x[:: max(1, len(x) // AWQ_SAMPLE)]
                scale = awq.search_scale([weights[name] for name in names], some, [form] * len(names),
                                         x_mean=np.abs(x).mean(0))  # fmt: skip
                scales |= {name: scale for name in names}
        return lambda name, w: quantise(w * scales[name], form).dequantize() / scales[name]

    return made


# label, method, reference for 260K at 4, 3, 2 bits and 2M at 4, 3, 2 bits
CALIBRATED: tuple[tuple[str, Calibrated, tuple[float, ...]], ...] = (
    ("RTN asym", plain(round_to_nearest, asymmetric), (0.089, 0.590, 4.35, 0.086, 0.521, 6.07)),
    ("RTN asym + MSE clip", plain(clip, asymmetric), (0.092, 0.459, 2.89, 0.033, 0.353, 3.42)),
    ("AWQ scale search, no clip", with_awq(round_to_nearest), (0.077, 0.487, 4.57, 0.089, 0.474, 4.76)),
    ("AWQ scale search + clip", with_awq(clip), (0.073, 0.435, 2.76, 0.043, 0.260, 2.43)),
    ("GPTQ", with_gptq(round_to_nearest, asymmetric), (0.061, 0.407, 3.87, 0.059, 0.282, 2.56)),
    ("GPTQ + MSE clip", with_gptq(clip, asymmetric), (0.048, 0.309, 2.02, 0.028, 0.182, 1.34)),
    ("GPTQ act-order, static groups", with_gptq(round_to_nearest, asymmetric, True),
     (0.068, 0.347, 3.42, 0.046, 0.254, 2.80)),
    ("GPTQ act-order, static + clip", with_gptq(clip, asymmetric, True), (0.050, 0.325, 2.02, 0.027, 0.190, 1.20)),
    ("HLQ (data-free)", plain(hlq, free), (0.063, 0.325, 2.37, 0.047, 0.202, 1.41)),
    ("HLQ inside GPTQ", with_gptq(hlq, free), (0.036, 0.268, 1.64, 0.044, 0.177, 0.94)),
)  # fmt: skip


def second_table(grounds: list[Ground], wanted: str) -> Iterator[str]:
    heads = [f"{ground.story.name} {bits}b g{ground.story.group_size}" for ground in grounds for bits in (4, 3, 2)]
    yield f"| with calibration: nats | {' | '.join(heads)} |\n|---|{'--:|' * len(heads)}"
    for label, method, references in (row for row in CALIBRATED if wanted in row[0]):
        cases = [(ground, bits) for ground in grounds for bits in (4, 3, 2)]
        found = (ground.measure(method(ground, bits, ground.story.group_size))[1] for ground, bits in cases)
        yield f"| {label} | {' | '.join(cell(o, r, NATS) for o, r in zip(found, references, strict=True))} |"


# label, is it HLQ, bits, group; dB normal, dB t5, nats of 2M without calibration and with (None: not given)
EQUAL_BITS: tuple[tuple[str, bool, int, int, tuple[float | None, ...]], ...] = (
    ("RTN2 + clip g32", False, 2, 32, (9.52, 8.57, 2.73, 1.11)),
    ("HLQ2 g128", True, 2, 128, (9.57, 7.91, 1.71, 1.26)),
    ("RTN2 + clip g64", False, 2, 64, (8.98, 7.77, None, None)),
    ("HLQ2 g256", True, 2, 256, (9.44, 7.51, None, None)),
    ("RTN3 + clip g32", False, 3, 32, (15.86, 14.57, 0.255, 0.120)),
    ("HLQ3 g128", True, 3, 128, (14.79, 12.79, 0.304, 0.206)),
    ("RTN4 + clip g32", False, 4, 32, (22.14, 20.85, 0.029, 0.023)),
    ("HLQ4 g128", True, 4, 128, (20.72, 18.40, 0.064, 0.078)),
)


def third_table(grounds: list[Ground], wanted: str) -> Iterator[str]:
    yield "| equal bits | bpw | normal dB | t5 dB | 2M nats, data-free | 2M nats, in GPTQ |\n|---|--:|--:|--:|--:|--:|"
    for label, is_hlq, bits, group, reference in (row for row in EQUAL_BITS if wanted in row[0]):
        base, make = (hlq, free(bits)) if is_hlq else (clip, asymmetric(bits))
        found = [(sqnr_db(w, base(w, make(group)).dequantize()), DB) for w in random_weights()]
        for method in (plain(base, lambda b, m=make: m), with_gptq(base, lambda b, m=make: m)):
            found.append((grounds[-1].measure(method(grounds[-1], bits, group))[1], NATS))
        cells = (cell(ours, r, most) for (ours, most), r in zip(found, reference, strict=True))
        yield f"| {label} | {make(group).bits_per_weight(1024):.2f} | {' | '.join(cells)} |"


Other = Callable[[Ground, str, np.ndarray], tuple[np.ndarray, float]]  # ground, name, w -> values, bits per weight


def turned_int4(ground: Ground, name: str, w: np.ndarray) -> tuple[np.ndarray, float]:
    """NVINT4 of a rotated weight, turned back."""
    signs, form = hadamard.random_signs(w.shape[1]), catalog.find("planes4-g16-e4m3xf32-row")
    q = codec.quantize(hadamard.rotate(w, signs), form)
    return hadamard.unrotate(q.dequantize(), signs), 8 * q.nbytes / w.size


def corrected(ground: Ground, name: str, w: np.ndarray) -> tuple[np.ndarray, float]:
    """Three bits with a correction of rank 2, weighted with the inputs."""
    q = clip(w, asymmetric(3)(64))
    found = lorc.low_rank(w, q, 2, np.diagonal(ground.hessians[name]))
    return found.dequantize(), 8 * q.nbytes / w.size + 32 * 2 * sum(w.shape) / w.size


def either_way(ground: Ground, name: str, w: np.ndarray) -> tuple[np.ndarray, float]:
    """Three bits, groups along inputs or outputs."""
    found = adadim.adadim(w, asymmetric(3)(64), clip, ground.hessians[name])
    return found.dequantize(), 8 * found.weight.nbytes / w.size


def of_parent(bits: int) -> Other:
    """The upper bits of 7."""

    def made(ground: Ground, name: str, w: np.ndarray) -> tuple[np.ndarray, float]:
        q = nested.child(clip(w, asymmetric(7)(64)), bits)
        return q.dequantize(), 8 * q.nbytes / w.size

    return made


def vectors(format: VectorFormat, uses_inputs: bool) -> Other:
    """Vectors as they are stored; the book counts."""

    def made(ground: Ground, name: str, w: np.ndarray) -> tuple[np.ndarray, float]:
        found = vptq.vptq(w, format, ground.hessians[name] if uses_inputs else None)
        return found.dequantize(), 8 * found.nbytes / w.size

    return made


def two_widths(ground: Ground, name: str, w: np.ndarray) -> tuple[np.ndarray, float]:
    """Two and a half bits on average over the model, in blocks of 64 x 64."""
    weights = ground.story.weights
    plans = mixed.plan({one: mixed.salience(weights[one], np.diagonal(ground.hessians[one]))
                        for one in ground.story.linears()}, 2.5, (64, 64))  # fmt: skip
    found = mixed.quantize(w, plans[name], lambda bits: asymmetric(bits)(64), clip)
    return found.dequantize(), 8 * found.nbytes / w.size


OTHERS: tuple[tuple[str, Other], ...] = (
    ("nested, 4 bits of 7", of_parent(4)),
    ("nested, 3 bits of 7", of_parent(3)),
    ("nested, 2 bits of 7", of_parent(2)),
    ("NVINT4 g16, rotated", turned_int4),
    ("RTN3 + clip, LoRC rank 2", corrected),
    ("RTN3 + clip, AdaDim", either_way),
    ("RTN2/3 + clip, SFMP 2.5", two_widths),
    *((f"VPTQ, {form.name}, {'with feedback' if heard else 'data-free'}", vectors(form, heard))
      for form in (VectorFormat(8), VectorFormat(8, 2), VectorFormat(4)) for heard in (False, True)),
)


def fourth_table(grounds: list[Ground], wanted: str) -> Iterator[str]:
    yield "| no reference | bpw 2M | 2M dB | 2M nats |\n|---|--:|--:|--:|"
    for label, method in (row for row in OTHERS if wanted in row[0]):
        sizes: list[tuple[float, int]] = []

        def new(name: str, w: np.ndarray, method: Other = method, sizes: list = sizes) -> np.ndarray:
            values, bits = method(grounds[-1], name, w)
            sizes.append((bits, w.size))
            return values

        db, nats = grounds[-1].measure(new)
        bits = sum(b * size for b, size in sizes) / sum(size for _, size in sizes)
        yield f"| {label} | {bits:.2f} | {db:.2f} | {nats:.3f} |"


TABLES = {"data-free": first_table, "calibrated": second_table, "equal-bits": third_table, "others": fourth_table}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default=",".join(TABLES), help="tables, joined by commas")
    options.add_argument("--rows", default="", help="only rows whose label has this word")
    chosen = options.parse_args()
    data = Path(os.environ.get("LUTRA_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
    if not data.is_dir():
        sys.exit(f"error: expected the shared data folder, got no {data}; set LUTRA_SHARED")
    if unknown := [name for name in chosen.only.split(",") if name not in TABLES]:
        options.error(f"expected tables of {', '.join(TABLES)}, got {unknown[0]}")
    grounds = [Ground(stories.stories260k(data), data), Ground(stories.stories2m(data), data)]
    print(f"`{tables.command()}`\n")
    for name in chosen.only.split(","):
        for line in TABLES[name](grounds, chosen.rows):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
