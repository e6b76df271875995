"""Low-rank terms beside weights: the recorded launches are formats/sidecars.matmul, to the last bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.launch import Program, Workers
from lutra.errors import FileError
from lutra.files import open_model
from lutra.formats import catalog, sidecars
from lutra.formats.sidecars import Adapted
from lutra.kernels.elementwise import silu_spec
from lutra.model import packed
from lutra.model.config import config_from
from lutra.model.load import load_weights
from lutra.model.pack import pack
from lutra.model.program import Recorder
from lutra.model.quantize import quantize
from lutra.model.recipe import Recipe
from lutra.model.transformer import Transformer
from lutra.model.weights import Linear, gated, side_by_side, tile
from lutra.quantize.methods import rtn
from tests.files.make_models import tiny_hf
from tests.model.test_packed import change

ISAS = [target.isa for target in targets.available()]
TEXT = "the cat sat on the mat and in the end ran after another cat " * 40
TOKENS = [1, *(int(i) for i in np.random.default_rng(6).integers(3, 250, 20))]
M = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    tiny_hf(path, "llama")
    return path


def weight(n: int, k: int, rank: int, seed: int, form: str = "planes3-g32", **sides: np.ndarray) -> Adapted:
    rng = np.random.default_rng(seed)
    q = rtn(rng.standard_normal((n, k)).astype(np.float32), catalog.find(form))
    low = rng.standard_normal((n, rank)).astype(np.float32), rng.standard_normal((rank, k)).astype(np.float32)
    return Adapted(q, low_rank=low, **sides)


def recorder(folder: Path, isa: str) -> Recorder:
    """Of the tiny model, its residual filled with numbers."""
    file = open_model(folder)
    config = config_from(file)
    found = Transformer(config, load_weights(file, config), Workers(1), 64, chunk=16, isa=isa)._recorder(16)
    b, rng = found.buffers, np.random.default_rng(3)
    b.residual[:, : config.hidden_size] = rng.standard_normal((len(b.residual), config.hidden_size))
    b.attended[:, : config.num_heads * config.head_dim] = rng.standard_normal((len(b.residual), 1))
    b.attended[:, : config.num_heads * config.head_dim] *= rng.standard_normal(config.num_heads * config.head_dim)
    b.state[0] = M
    return found


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", ["planes3-g32", "ternary", "e4m3-row"])
def test_added_to_the_residual(folder: Path, isa: str, form: str) -> None:
    r = recorder(folder, isa)
    b, hidden, k = r.buffers, r.config.hidden_size, r.config.num_heads * r.config.head_dim
    perm = np.random.default_rng(1).permutation(k).astype(np.int32)
    for sides in ({}, {"perm": perm, "input_scale": np.linspace(0.5, 2, k, dtype=np.float32)}):
        w = weight(hidden, k, 6, 1, form, **sides)
        bias = np.linspace(-1, 1, hidden, dtype=np.float32)
        before = b.residual[:M, :hidden].copy()
        Program(r._project(tile(w, bias), b.attended, None)).run(Workers(2), M)
        assert np.array_equal(b.residual[:M, :hidden], before + (sidecars.matmul(b.attended[:M, :k], w) + bias))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("ranks", [(6, 3), (4, 4)])
def test_inside_the_gate(folder: Path, isa: str, ranks: tuple[int, int]) -> None:
    r = recorder(folder, isa)
    b, hidden, ffn = r.buffers, r.config.hidden_size, r.config.ffn_size
    gate, up = (weight(ffn, hidden, rank, seed) for seed, rank in enumerate(ranks))
    layer = replace(r.weights.layers[0], gate_up=gated(gate, up), down=Linear(r.weights.layers[0].down.weight))
    steps = r._feed_forward(layer)
    Program(steps[: -len(r._project(layer.down, b.gated, None))]).run(Workers(2), M)
    normed = np.asarray(r.scratch.floats("normed", b.residual.shape))[:M, :hidden]
    want = silu_spec(sidecars.matmul(normed, gate)) * sidecars.matmul(normed, up)
    assert np.abs(normed).max() > 0 and np.array_equal(b.gated[:M, :ffn], want)


def test_several_side_by_side_some_without() -> None:
    first, third = weight(20, 64, 3, 1), weight(12, 64, 5, 2)
    second = weight(16, 64, 1, 3).weight
    (whole,) = side_by_side([first, second, third], [None] * 3)
    assert whole.inputs is None and whole.low_rank is not None
    assert (whole.low_rank.v.n, whole.low_rank.u.n) == (12, 48)
    x = np.random.default_rng(0).standard_normal((M, 64)).astype(np.float32)
    us, v = sidecars.join([first.low_rank, None, third.low_rank], [20, 16, 12]) or ([], x)
    parts = [sidecars.matmul(x, w if isinstance(w, Adapted) else Adapted(w)) for w in (first, second, third)]
    for w, u, want in zip((first.weight, second, third.weight), us, parts, strict=True):
        assert np.array_equal(sidecars.matmul(x, Adapted(w, low_rank=(u, v))), want)


U, V = "layers.0.o.low_rank_u", "layers.0.o.low_rank_v"


@pytest.mark.parametrize(("edit", "words"), [
    (lambda weights: weights[U].update(k=6), "codes: expected|by the config"),
    (lambda weights: weights[U].update(n=32), "64 x 5 by the config"),
    (lambda weights: weights[V].update(k=32), "5 x 64 by the config"),
    (lambda weights: weights[V].update(n=1 << 30), "5 x 64 by the config"),
    (lambda weights: weights[V].update(order="mad"), "mad order takes"),
    (lambda weights: weights.pop(V), V),
    (lambda weights: weights.pop(U), "only arrays"),
    (lambda weights: weights.update({U: dict(weights["layers.0.o"], n=64, k=5)}), U),
])  # fmt: skip
def test_packed_files_that_lie(folder: Path, tmp_path: Path, edit, words: str) -> None:
    quantize(folder, tmp_path / "m.safetensors", Recipe("planes3-g32", lorc=5), None, 2, lambda *_: None)
    pack(tmp_path / "m.safetensors", tmp_path / "m.lutra", "auto", lambda *_: None)
    config = config_from(open_model(tmp_path / "m.lutra"))
    assert packed.load(open_model(tmp_path / "m.lutra"), config).layers[0].o.low_rank is not None
    whole = (tmp_path / "m.lutra").read_bytes()
    with pytest.raises(FileError, match=words):
        path = change(tmp_path / "m.lutra", whole, lambda header, entries: edit(header["weights"]))
        packed.load(open_model(path), config)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_a_model_quantised_saved_packed_and_run(folder: Path, tmp_path: Path, method: str) -> None:
    recipe = Recipe("planes3-g32", method, keep=(("layers.1.k", "as-stored"),), windows=4, length=48)
    plain, saved, packed_path = (tmp_path / name for name in ("plain.safetensors", "lorc.safetensors", "lorc.lutra"))
    before = quantize(folder, plain, recipe, TEXT, 2, lambda *_: None)
    after = quantize(folder, saved, replace(recipe, lorc=5), TEXT, 2, lambda *_: None)
    assert all(found > before.sqnr_db()[kind] for kind, found in after.sqnr_db().items() if kind in before.sqnr_db())
    assert after.bits_per_weight > before.bits_per_weight
    file = open_model(saved)
    assert {part.shape for part in file.tensors["layers.0.o"].read().low_rank} == {(64, 5), (5, 64)}
    config = config_from(file)
    pack(saved, packed_path, "auto", lambda *_: None)
    again = packed.load(open_model(packed_path), config)
    weights = load_weights(file, config)
    assert again.bytes_per_token == weights.bytes_per_token
    logits = [
        Transformer(config, each, Workers(threads), 64, all_logits=True, isa=isa).score(TOKENS, 0).copy()
        for isa in ISAS for each, threads in ((weights, 1), (weights, 3), (again, 2))
    ]  # fmt: skip
    assert all(np.array_equal(logits[0], other) for other in logits[1:])
    one = Transformer(config, weights, Workers(1), 64)
    for position, token in enumerate(TOKENS):
        last = one.decode(token, position)
    assert np.array_equal(last, logits[0][-1])
