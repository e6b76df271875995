"""Combinations are made in order and checked before anything is measured; what does not fit is not allocated."""

import pytest

from lutra import machine
from lutra.bench import case
from lutra.bench.case import Case, Model
from lutra.errors import CapacityError, FormatError, RequestError


def test_combinations_in_order() -> None:
    found = case.models(["tiny", "125m"], ["ternary", "planes4-g32"], head="int8-row")
    names = [(model.shape, model.format) for model in found]
    assert names == [("tiny", "ternary"), ("tiny", "planes4-g32"), ("125m", "ternary"), ("125m", "planes4-g32")]
    assert {model.head for model in found} == {"int8-row"}
    assert case.cases(found[0], [8, 16], 4, [1, 2]) == [
        Case(found[0], prompt, 4, threads) for threads in (1, 2) for prompt in (8, 16)
    ]


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (("9b", "ternary"), RequestError, "expected a shape of"),
        (("tiny", "ternery"), FormatError, "did you mean ternary"),
        (("tiny", "ternary", "in8"), FormatError, "expected the name of a format"),
        (("tiny", "ternary", "", "row"), RequestError, "expected an order of auto, mad, lut"),
        (("tiny", "int8-row", "", "lut"), FormatError, "expected"),
        (("tiny", "bf16", "", "mad"), RequestError, "expected no order for bf16"),
    ],
)
def test_what_there_is_not_is_refused_at_once(model: tuple[str, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        case.models([model[0]], [model[1]], *model[2:])


def test_floats_are_formats_too() -> None:
    wide, few = Model("tiny", "f16").make(8), Model("tiny", "int8-row", "bf16").make(8)
    assert wide.head.weight.dtype == "f16" and wide.layers[0].o.weight.order == "dense"
    assert few.head.weight.dtype == "bf16" and few.layers[0].o.weight.order == "mad"
    assert 1.9 < wide.bytes_per_token / Model("tiny", "int8-row").make(8).bytes_per_token < 2.1


def test_a_model_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """70b in 4 bits is 34 GB and more of weights; 1000 positions of cache are 0.3 GB."""
    monkeypatch.setattr(machine, "available_bytes", lambda: 8_000_000_000)
    monkeypatch.setattr(case, "random_weights", lambda *a, **b: pytest.fail("allocated"))
    with pytest.raises(CapacityError, match=r"expected 3\d\.\d GB of free memory for 70b in planes4-row, got 8\.0 GB"):
        Model("70b", "planes4-row").make(1000)


def test_a_system_that_does_not_say_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: None)
    assert Model("tiny", "ternary").make(8).bytes_per_token > 0
