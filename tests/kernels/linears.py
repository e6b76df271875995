"""Random weights and activations for the tests of matmul and embedding kernels."""

from __future__ import annotations

import numpy as np

from lutra.compiler.launch import Step
from lutra.formats import integer
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.kernels.activations import Activations, allocate
from tests.formats.parts import random_beside, random_codes


def random_weight(format: Format, n: int, k: int, seed: int = 0) -> QTensor:
    """Random codes, scales of both signs; the codes of row 0 are all the largest."""
    rng = np.random.default_rng(seed)
    codes = random_codes(format, n, k, rng)
    codes[0] = format.num_codes - 1
    return QTensor.from_codes(format, codes, **random_beside(format, n, k, rng))


def random_activations(w: QTensor, m: int, rows: int, seed: int = 1) -> Activations:
    """Buffers of `rows` rows: row 0 is all 127, half of the next m - 1 rows is +-127; rows behind M hold rubbish."""
    rng = np.random.default_rng(seed)
    x, k = allocate(rows, w.shape[1], w.format), w.shape[1]
    ends = rng.choice(np.array([-127, 127], np.int8), x.xq.shape)
    x.xq[:] = np.where(rng.random(x.xq.shape) < 0.5, ends, rng.integers(-127, 128, x.xq.shape))
    x.xq[0] = 127
    x.xq[:m, k:] = 0
    x.xs[:] = rng.random(x.xs.shape, np.float32)
    x.sums[:] = integer.activation_sums(x.xq, w.format.group_size)
    return x


def state(m: int) -> np.ndarray:
    """What a step tells its kernels: m rows from position 0, all of them for the head."""
    return np.array([m, 0, 0, m], np.int64)


def run(step: Step, m: int) -> None:
    """Run a step for m rows on this thread."""
    step.launch.run(0, step.count(m))
