"""Random weights of any format, for the tests beside this file."""

from collections.abc import Callable

import numpy as np
import pytest

from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from tests.formats.parts import random_beside, random_codes


def make_weight(form: Format, n: int, k: int, seed: int = 0) -> QTensor:
    """Make codes that use the whole alphabet, scales of both signs, and what offset the format takes."""
    rng = np.random.default_rng(seed)
    return QTensor.from_codes(form, random_codes(form, n, k, rng), **random_beside(form, n, k, rng))


@pytest.fixture
def random_weight() -> Callable[..., QTensor]:
    return make_weight
