"""Whole models on emulated ARM CPUs: the logits have the same bits as on this computer."""

from pathlib import Path

import numpy as np
import pytest

from lutra.compiler.launch import Program, Workers
from lutra.files import open_model
from lutra.kernels.plan import plan_for
from lutra.model.config import config_from
from lutra.model.load import load_weights
from lutra.model.transformer import Transformer
from tests.arm.emulator import ISAS, Emulator
from tests.files import make_models

TOKENS, NEXT = [1, 7, 30, 4, 99], 8


def bitnet(folder: Path) -> Path:
    make_models.tiny_hf(folder, family="bitnet")
    return folder


def gguf(folder: Path) -> Path:
    return make_models.tiny_llama_gguf(folder / "model.gguf", quant="Q4_0")


def logits(path: Path) -> np.ndarray:
    """After a prompt, and after the token that follows it: f32 [2, vocab]."""
    file = open_model(path)
    config = config_from(file)
    transformer = Transformer(config, load_weights(file, config), Workers(1), context=16, chunk=16)
    return np.stack([transformer.prefill(TOKENS, 0).copy(), transformer.decode(NEXT, len(TOKENS)).copy()])


@pytest.mark.parametrize("isa, make", [*zip(ISAS, (bitnet, gguf, bitnet), strict=True)])
def test_logits_have_the_same_bits(emulator: Emulator, monkeypatch, tmp_path, make, isa):
    monkeypatch.setattr(make_models, "NUM_LAYERS", 1)
    path = make(tmp_path)
    want = logits(path)
    assert np.isfinite(want).all() and want.std() > 0

    def run_emulated(program: Program, workers: Workers, num_rows: int) -> None:
        for step in program.steps:
            launch = step.launch
            static = dict(launch.static)
            if "plan" in static:
                static["plan"] = plan_for(launch.kernel.name.removeprefix("matmul_"), isa, static["tile_m"])
            emulator.run(launch.kernel, launch.args, step.count(num_rows), isa, **static)

    monkeypatch.setattr(Program, "run", run_emulated)
    np.testing.assert_array_equal(logits(path).view(np.uint32), want.view(np.uint32))
