"""The table of a tiny model: by hand where it can be, and swapping one unit really swaps that unit alone."""

from pathlib import Path

import numpy as np
import pytest

from lutra.compiler.launch import Workers
from lutra.errors import RequestError
from lutra.formats import catalog
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.model import sensitivity
from lutra.model.inputs import HEAD, collect, units
from lutra.model.load import Model, load_model
from lutra.model.pack import pack
from lutra.model.transformer import Transformer
from lutra.model.weights import widen
from lutra.quantize.rounding import round_to_nearest
from tests.files.make_models import tiny_hf, tiny_llama_gguf

TOKENS = list(range(3, 67))
FORMATS = [catalog.find(name) for name in ("planes2-g64-mins", "planes4-g32", "int8-g32")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tiny_llama_gguf(tmp_path_factory.mktemp("sensitivity") / "tiny.gguf"), 1, 64, None)


def loss(transformer: Transformer) -> float:
    logits = transformer.score(TOKENS[:-1], 0).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return float(-logits[np.arange(len(logits)), TOKENS[1:]].mean())


def test_bytes_and_output_errors_by_hand(model: Model) -> None:
    found = sensitivity.measure(model, [TOKENS], FORMATS, loss, "output", num_rows=1000)
    assert set(found) == {*units(model.config), HEAD}
    w = widen(model.file.tensors["layers.1.down"].read())
    x = collect(model.transformer, [TOKENS], 1000)["layers.1.down"]
    q = sensitivity.by_default("layers.1.down", w, FORMATS[1])
    wanted = np.linalg.norm(x @ (w - q.dequantize()).T) ** 2 / np.linalg.norm(x @ w.T) ** 2
    assert found["layers.1.down"]["planes4-g32"] == (q.nbytes, pytest.approx(wanted, rel=1e-6))
    for options in found.values():
        (small, rough), (_, fine), (large, exact) = options.values()
        assert small < large and rough > fine > exact > 0


def test_the_loss_is_measured_with_one_unit_swapped(model: Model) -> None:
    found = sensitivity.measure(model, [TOKENS], FORMATS[:1], loss, "loss")
    swap = sensitivity.Swap(model, 64, loss)
    for unit in ("layers.0.qkv", "layers.1.gate_up", HEAD):
        names = {**units(model.config), HEAD: (HEAD,)}[unit]
        source = {name: "embed" if name == HEAD and HEAD not in model.file.tensors else name for name in names}
        tensors = {name: _rough(widen(model.file.tensors[source[name]].read())) for name in names}
        increase = swap.loss_with(tensors) - swap.baseline()
        assert found[unit][FORMATS[0].name][1] == max(increase, 0)
    assert sum(options[FORMATS[0].name][1] > 0 for options in found.values()) > 3


def _quick(name: str, w: np.ndarray, format: Format) -> QTensor:
    return round_to_nearest(w, format)


def _rough(w: np.ndarray) -> QTensor:
    return sensitivity.by_default("", w, FORMATS[0])


def test_only_the_unit_is_swapped(model: Model) -> None:
    swap = sensitivity.Swap(model, 64, loss)
    weights = swap.weights_with({"layers.0.o": _rough(widen(model.file.tensors["layers.0.o"].read()))})
    before, after = model.weights, weights
    assert after.layers[1] is before.layers[1] and after.head is before.head and after.embed is before.embed
    assert after.layers[0].o.weight.format == FORMATS[0] and after.layers[0].down.weight.format is None
    assert np.array_equal(after.layers[0].down.weight.codes, before.layers[0].down.weight.codes)
    assert model.weights.layers[0].o.weight.format is None  # the model stays what it was


def test_the_loss_of_an_allocation_is_that_of_all_its_units(model: Model) -> None:
    swap = sensitivity.Swap(model, 64, loss)
    name = FORMATS[0].name
    one = swap.loss_of({"layers.0.o": name}, sensitivity.by_default)
    assert one == swap.loss_with({"layers.0.o": _rough(widen(model.file.tensors["layers.0.o"].read()))})
    both = swap.loss_of({"layers.0.o": name, "layers.1.gate_up": name, "head": name}, sensitivity.by_default)
    assert both != one and swap.loss_of({}, sensitivity.by_default) == swap.baseline()


def test_scaled_losses_agree_where_they_are_measured_and_follow_the_output_error(model: Model) -> None:
    scaled, measured, output = (
        sensitivity.measure(model, [TOKENS], FORMATS[::2], loss, method, _quick)
        for method in ("scaled", "loss", "output")
    )
    name = FORMATS[0].name
    for unit, options in scaled.items():
        assert options[name][1] == pytest.approx(measured[unit][name][1], rel=1e-9)
        ratio = output[unit]["int8-g32"][1] / output[unit][name][1]
        assert options["int8-g32"][1] == pytest.approx(options[name][1] * ratio)


def test_a_quantiser_of_ones_own_is_asked_by_name(model: Model) -> None:
    asked: list[str] = []

    def quantise(name: str, w: np.ndarray, format: object) -> QTensor:
        asked.append(name)
        return round_to_nearest(w, FORMATS[1])

    told: list[int] = []
    options = {"quantise": quantise, "with_head": False, "progress": lambda label, done, total: told.append(done)}
    sensitivity.measure(model, [TOKENS], FORMATS[1:2], loss, "output", **options)  # type: ignore[arg-type]
    assert asked == [name for names in units(model.config).values() for name in names]
    assert told == list(range(1, len(units(model.config)) + 1))


def test_times_are_measured_for_every_size(model: Model) -> None:
    wanted = sensitivity.unit_sizes(model.config)
    assert wanted["layers.0.qkv"] == (128, 64) and wanted[HEAD] == (model.config.vocab_size, 64)
    for rows in (1, 16):
        times = sensitivity.kernel_times(wanted, FORMATS[:2], rows, Workers(1))
        assert times.keys() == wanted.keys() and times["layers.0.o"] == times["layers.1.o"]
        assert all(us > 0 for options in times.values() for us in options.values())


def test_the_table_and_what_it_is_counted_over(model: Model) -> None:
    costs = {"head": {"planes4-g32": (2000.0, 0.5)}}
    assert sensitivity.predicted_times(costs, 10.0) == {"head": {"planes4-g32": pytest.approx(0.2)}}  # 2 kB at 10 GB/s
    assert sensitivity.join(costs, {"head": {"planes4-g32": 3.0}}) == {"head": {"planes4-g32": (2000.0, 0.5, 3.0)}}
    tensors = [t for name, t in model.file.tensors.items() if len(t.shape) == 2 and name not in ("embed", "head")]
    assert sensitivity.num_weights(model.config, with_head=False) == sum(int(np.prod(t.shape)) for t in tensors)
    assert sensitivity.per_tensor({"layers.0.qkv": "a", "head": "b"}, model.config) == {
        "layers.0.q": "a", "layers.0.k": "a", "layers.0.v": "a", "head": "b"
    }  # fmt: skip


def test_a_model_of_ternary_masters(tmp_path: Path) -> None:
    tiny_hf(tmp_path, family="bitnet")
    model = load_model(tmp_path, 1, 64, None)
    found = sensitivity.measure(model, [TOKENS], FORMATS[1:], loss, "scaled")
    assert all(error >= 0 for options in found.values() for _, error in options.values())


def test_what_cannot_be_measured_is_said(model: Model, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected a method of output, loss, scaled, got 'guess'"):
        sensitivity.measure(model, [TOKENS], FORMATS, loss, "guess")
    with pytest.raises(RequestError, match="expected formats to choose from"):
        sensitivity.measure(model, [TOKENS], [], loss)
    pack(model.file.path, tmp_path / "a.lutra", "auto", lambda *step: None)
    with pytest.raises(RequestError, match="which is packed"):
        sensitivity.measure(load_model(tmp_path / "a.lutra", 1, 64, None), [TOKENS], FORMATS, loss)
