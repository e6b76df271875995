"""Export: codes survive packing, the folder holds what its readers expect, the reference equals the trained model."""

import dataclasses
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'lutra[train]'")

from safetensors.torch import load_file  # noqa: E402

from lutra.compiler.launch import Workers  # noqa: E402
from lutra.errors import FileError, FormatError  # noqa: E402
from lutra.files import open_model  # noqa: E402
from lutra.model.config import config_from  # noqa: E402
from lutra.model.load import load_weights  # noqa: E402
from lutra.model.transformer import Transformer  # noqa: E402
from lutra.train import data, export  # noqa: E402
from lutra.train.bitlinear import ternarize  # noqa: E402
from lutra.train.model import DecoderConfig  # noqa: E402
from lutra.train.run import Run, RunConfig  # noqa: E402
from tests.train.test_data import corpus, mixture  # noqa: E402

TINY = DecoderConfig(vocab_size=300, hidden_size=32, ffn_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
                     max_context=32)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A tiny run whose checkpoint and tokenizer lie in tmp_path; norms are not all one."""
    run = Run.start(RunConfig(model=TINY, length=16, batch_size=2), mixture())
    with torch.no_grad():
        for parameter in run.model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    run.save(tmp_path / "checkpoint.pt")
    data.train_tokenizer(corpus(), 300).save(str(tmp_path / "tokenizer.json"))
    return run


def test_pack_by_hand() -> None:
    codes = torch.tensor([[-1], [0], [1], [1]])  # stored as 0, 1, 2, 2 at bits 0, 2, 4, 6
    assert export.pack_rows(codes).tolist() == [[0 | 1 << 2 | 2 << 4 | 2 << 6]]


def test_pack_keeps_rows_a_quarter_apart_in_one_byte() -> None:
    codes = torch.zeros(8, 3)
    codes[6, 1] = 1  # row 6 = 3 * (8 / 4) + 0: byte row 0, bits 6 and 7
    assert export.pack_rows(codes)[0, 1] == 2 << 6 | 0b010101


def test_pack_round_trips() -> None:
    codes = torch.randint(-1, 2, (20, 7), generator=torch.Generator().manual_seed(1))
    assert torch.equal(export.unpack_rows(export.pack_rows(codes)).long(), codes)


def test_pack_rejects_rows_that_do_not_fill_a_byte() -> None:
    with pytest.raises(FormatError, match="got N=6"):
        export.pack_rows(torch.zeros(6, 4))


def test_every_code_of_the_folder_is_the_trained_one(run: Run, tmp_path: Path) -> None:
    export.export(tmp_path, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    state = run.model.state_dict()
    linears = [name for name in state if name.endswith("_proj.weight")]
    assert len(linears) == 7 * TINY.num_layers and set(tensors) == set(state) | {n + "_scale" for n in linears}
    for name in linears:
        codes, scale = ternarize(state[name])
        assert torch.equal(export.unpack_rows(tensors[name]).float(), codes)
        assert tensors[name + "_scale"] == scale.bfloat16()
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["quantization_config"]["linear_class"] == "autobitlinear" and config["hidden_act"] == "relu2"


def test_reference_agrees_with_the_trained_model(run: Run, tmp_path: Path) -> None:
    with torch.no_grad():  # values a bfloat16 file holds exactly, so that only the order of sums differs
        for name, parameter in run.model.named_parameters():
            if not name.endswith("_proj.weight"):
                parameter.copy_(parameter.bfloat16())
            else:
                codes, _ = ternarize(parameter)
                parameter.copy_(codes / 4)
                parameter.flatten()[codes.flatten() == 0] = 1e-3
                parameter.mul_(0.125 / parameter.abs().mean())
    run.save(tmp_path / "checkpoint.pt")
    export.export(tmp_path, tmp_path / "model")
    ids = [0, 17, 250, 3, 99, 17]
    with torch.no_grad():
        trained = run.model(torch.tensor([ids]))[0]
    torch.testing.assert_close(export.reference_logits(tmp_path / "model", ids), trained, rtol=1e-3, atol=1e-4)


def test_capture_holds_the_exact_sums(run: Run, tmp_path: Path) -> None:
    export.export(tmp_path, tmp_path / "model")
    capture: dict[str, export.CapturedDot] = {}
    export.reference_logits(tmp_path / "model", [0, 5, 9], capture)
    assert len(capture) == 7 * TINY.num_layers
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    for name, dot in capture.items():
        codes = export.unpack_rows(tensors[name + ".weight"])
        assert dot.acc.dtype == torch.int32
        assert torch.equal(dot.acc.double(), dot.values.double() @ codes.double().T)
        assert dot.x.shape == dot.values.shape


def test_causal(run: Run, tmp_path: Path) -> None:
    export.export(tmp_path, tmp_path / "model")
    short = export.reference_logits(tmp_path / "model", [0, 5, 9])
    longer = export.reference_logits(tmp_path / "model", [0, 5, 9, 200, 7])
    torch.testing.assert_close(short, longer[:3])


def test_a_float_decoder_is_a_llama_that_any_engine_runs(tmp_path: Path) -> None:
    run = Run.start(RunConfig(model=dataclasses.replace(TINY, weights="float"), length=16, batch_size=2), mixture())
    run.save(tmp_path / "checkpoint.pt")
    data.train_tokenizer(corpus(), 300).save(str(tmp_path / "tokenizer.json"))
    export.export(tmp_path, tmp_path / "model")
    file = open_model(tmp_path / "model")
    config = config_from(file)
    ids = [0, 5, 9, 200, 7]
    got = Transformer(config, load_weights(file, config), Workers(1), 16, all_logits=True).score(ids, 0)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.copy_(parameter.bfloat16())  # what the file holds
        expected = run.model(torch.tensor([ids]))[0]
    torch.testing.assert_close(torch.from_numpy(got.copy()), expected, rtol=0, atol=0.002 * float(expected.std()))


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="checkpoint.pt"):
        export.export(tmp_path, tmp_path / "model")
