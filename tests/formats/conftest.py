"""Random weights of any format, for the tests beside this file."""

from collections.abc import Callable

import numpy as np
import pytest

from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor


def make_weight(form: Format, n: int, k: int, seed: int = 0) -> QTensor:
    """Make codes that use the whole alphabet, scales of both signs, and what offset the format takes."""
    rng = np.random.default_rng(seed)
    groups = (n, form.num_groups(k))
    return QTensor.from_codes(
        form,
        rng.integers(0, form.num_codes, (n, k)).astype(np.uint8),
        rng.standard_normal(groups).astype(form.dtype),
        zeros=rng.integers(0, 2**form.bits + 1, groups).astype(np.uint8) if form.offset == "zeros" else None,
        mins=rng.standard_normal(groups).astype(form.dtype) if form.offset == "mins" else None,
    )


@pytest.fixture
def random_weight() -> Callable[..., QTensor]:
    return make_weight
