"""The model that comes with lutra: lossless in the sense of BitNet, and small enough to ship.

The reference is lutra/train/export.py in PyTorch: int8 activations times ternary weights as exact integer sums.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lutra
from lutra.compiler import targets
from lutra.compiler.launch import Workers
from lutra.files import open_model
from lutra.kernels import activations, choose, norm
from lutra.kernels.buffers import aligned
from lutra.model.config import config_from
from lutra.model.load import load_weights
from lutra.model.tokenizer import Tokenizer
from lutra.model.transformer import Transformer

FOLDER = Path(lutra.__file__).parent / "models" / "stories"
PROMPT = "Once upon a time there was a little girl who lived in a house by the sea. One day her mother said"
ROLES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def test_it_is_small_and_whole():
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("torch", reason="needs torch: pip install lutra[train]")
    from lutra.train.export import reference_logits

    file = open_model(FOLDER)
    ids = Tokenizer.from_file(file).encode(PROMPT)
    captured: dict = {}
    return file, ids, reference_logits(FOLDER, ids, captured).numpy(), captured


@pytest.mark.parametrize("isa", [target.isa for target in targets.available()])
@pytest.mark.parametrize("order", ["mad", "lut"])
def test_packed_kernels_give_the_exact_sums_of_the_export(reference, isa, order):
    """Every linear of every layer, fed with the reference's own activations; scales are 1, so y is the sum."""
    file, ids, _, captured = reference
    for layer, (role, theirs) in itertools.product(range(config_from(file).num_layers), ROLES.items()):
        name = f"layers.{layer}.{role}"
        weight = file.tensors[name].read()
        tiled = choose.tile(replace(weight, scales=np.ones_like(weight.scales)), order=order)
        dot = captured[f"model.layers.{layer}.{theirs}"]
        inputs, sums = _multiply(tiled, dot.x.numpy(), isa)
        np.testing.assert_array_equal(inputs, dot.values.numpy(), err_msg=name)
        np.testing.assert_array_equal(sums, dot.acc.numpy(), err_msg=name)


def _multiply(tiled, x: np.ndarray, isa: str) -> tuple[np.ndarray, np.ndarray]:
    """Quantise x as the engine does and multiply; int8 inputs and the sums as integers."""
    rows = -(-len(x) // 16) * 16
    buffer = aligned((rows, tiled.padded_k + 64), np.float32)
    buffer[: len(x), : x.shape[1]] = x
    state = np.array([len(x), 0, 0, len(x)], np.int64)
    quantised = activations.allocate(rows, tiled.k, tiled.format, with_tables=tiled.order == "lut")
    norm.bind_quantize(buffer, quantised, state, width=tiled.k, isa=isa).launch.run(0, len(x))
    quantised.xs[:] = 1
    y = aligned((rows, tiled.padded_n + 64), np.float32)
    step = choose.bind(tiled, quantised, y, state, epilogue="store", tile_m=choose.tile_m(tiled, len(x), isa), isa=isa)
    step.launch.run(0, step.count(len(x)))
    return quantised.xq[: len(x), : tiled.k], y[: len(x), : tiled.n].astype(np.int64)


def test_logits_follow_the_reference(reference):
    """Same next words, and logits equal but for the order in which floats are added."""
    file, ids, want, _ = reference
    config = config_from(file)
    transformer = Transformer(config, load_weights(file, config), Workers(2), 128, all_logits=True)
    got = transformer.score(ids, 0)
    assert np.sqrt(((got - want) ** 2).mean()) < 0.02 * want.std()
    assert (got.argmax(1) == want.argmax(1)).mean() > 0.95
