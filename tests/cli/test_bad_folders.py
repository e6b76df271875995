"""Hugging Face folders that are broken or hostile: one line that says what to do, exit code 2, no traceback.

Each row of a table spoils one thing of a model that runs and names what the message must say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutra import cli
from tests.cli.spoilt import assert_one_error, run, spoilt_gguf
from tests.files import make_models
from tests.files.make_models import tiny_hf, tiny_llama_gguf
from tests.files.safetensors_writer import bfloat16, write_raw, write_safetensors

UP = "model.layers.1.mlp.up_proj.weight"


def set_config(**change: Any) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for key, value in change.items():
            config[key] = value
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


def write(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def state(**change: np.ndarray | None) -> Callable[[Path], Any]:
    """Write the weights of seed 0 anew with some changed; None leaves one out, and _ stands for a dot in names."""

    def spoil(folder: Path) -> None:
        weights: dict[str, Any] = make_models.random_state(np.random.default_rng(0), "llama", make_models.Sizes())
        for name, values in change.items():
            weights[name] = values
        kept = {name: values for name, values in weights.items() if values is not None}
        write_safetensors(folder / "model.safetensors", kept)

    return spoil


def change(name: str, values: np.ndarray | None) -> Callable[[Path], Any]:
    return state(**{name: values})


def entries(text: str) -> Callable[[Path], Any]:
    return lambda folder: write_raw(folder / "model.safetensors", text.encode(), bytes(64))


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (remove("config.json"), "config.json"),
    "config of no JSON": (write("config.json", b"{oops"), "config.json"),
    "config nested too deep": (write("config.json", b"[" * 100_000), "config.json"),
    "config a list": (write("config.json", b"[1]"), "config.json"),
    "config of other bytes": (write("config.json", b"\xff\xfe\0\0"), "config.json"),
    "unknown class": (set_config(architectures=["MambaForCausalLM"]), "Mamba"),
    "width in words": (set_config(hidden_size="64"), "hidden_size"),
    "absurd width": (set_config(hidden_size=10**30), "hidden_size"),
    "a fraction of a layer": (set_config(num_hidden_layers=2.5), "num_hidden_layers"),
    "absurd layers": (set_config(num_hidden_layers=10**9), "num_hidden_layers"),
    "more layers than there are": (set_config(num_hidden_layers=5), "layers.2."),
    "absurd vocabulary": (set_config(vocab_size=10**12), "vocab_size"),
    "no vocabulary": (set_config(vocab_size=0), "vocab_size"),
    "vocabulary larger than the embedding": (set_config(vocab_size=500), "embed_tokens"),
    "vocabulary smaller than the embedding": (set_config(vocab_size=100), "100"),
    "absurd head size": (set_config(head_dim=1 << 20), "head_dim"),
    "odd head size": (set_config(head_dim=15), "head_dim"),
    "theta 0": (set_config(rope_theta=0), "rope_theta"),
    "epsilon below 0": (set_config(rms_norm_eps=-1), "rms_norm_eps"),
    "unknown activation": (set_config(hidden_act="gelu_new"), "gelu_new"),
    "unknown rope scaling": (set_config(rope_scaling={"rope_type": "yarn", "factor": 4}), "yarn"),
    "rope scaling a number": (set_config(rope_scaling=3), "rope_scaling"),
    "tied to nobody": (set_config(tie_word_embeddings="maybe"), "tie_word_embeddings"),
    "end token outside": (set_config(eos_token_id=10**6), "eos_token_id"),
    "no weights": (remove("model.safetensors"), "safetensors"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors"),
    "header longer than the file": (write("model.safetensors", b"\xff" * 64), "header length"),
    "header of no JSON": (entries("{oops"), "header"),
    "header nested too deep": (entries("[" * 100_000), "header"),
    "header a list": (entries("[]"), "header"),
    "no tensors": (entries("{}"), "embed"),
    "an unknown dtype": (entries('{"lm_head.weight": {"dtype": "Q9", "shape": [4], "data_offsets": [0, 4]}}'), "Q9"),
    "a dtype that is not read": (
        entries('{"lm_head.weight": {"dtype": "F64", "shape": [8], "data_offsets": [0, 64]}}'), "F64",
    ),
    "data beyond the end": (
        entries('{"lm_head.weight": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}'), "lm_head",
    ),
    "more shape than data": (
        entries('{"lm_head.weight": {"dtype": "F32", "shape": [99], "data_offsets": [0, 64]}}'), "lm_head",
    ),
    "negative offsets": (
        entries('{"lm_head.weight": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}'), "data_offsets",
    ),
    "a shape that overflows": (
        entries(f'{{"a": {{"dtype": "F32", "shape": [{1 << 60}, {1 << 60}], "data_offsets": [0, 0]}}}}'), "shape",
    ),
    "tensors on top of each other": (
        entries(
            '{"lm_head.weight": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},'
            ' "model.norm.weight": {"dtype": "F32", "shape": [8], "data_offsets": [16, 48]}}'
        ),
        "ends at",
    ),
    "missing matrix": (change(UP, None), "layers.1.up"),
    "shape against the config": (change(UP, np.zeros((64, 160), np.float32)), "(160, 64)"),
    "extra bias": (change("model.layers.0.mlp.up_proj.bias", np.zeros(160, np.float32)), "up_proj.bias"),
    "extra tensor of nobody's": (change("model.layers.0.adapter.weight", np.zeros(4, np.float32)), "adapter"),
    "packed without a scale": (change(UP, np.zeros((40, 64), np.uint8)), "weight_scale"),
    "weights no numbers": (change(UP, np.full((160, 64), np.nan, np.float32)), "NaN"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json"),
    "tokenizer of no JSON": (write("tokenizer.json", b"{oops"), "tokenizer.json"),
    "tokenizer of another kind": (write("tokenizer.json", b'{"version": "1.0", "model": {"type": "X"}}'), "tokenizer"),
    "tokenizer of other bytes": (write("tokenizer.json", bytes(range(256))), "tokenizer.json"),
    "tokenizer's config a list": (write("tokenizer_config.json", b"[]"), "tokenizer_config.json"),
    "generation config of no JSON": (write("generation_config.json", b"{"), "generation_config.json"),
    "a shard outside": (
        lambda folder: (
            (folder / "model.safetensors").rename(folder / "other.safetensors"),
            write("model.safetensors.index.json", b'{"weight_map": {"lm_head.weight": "../../etc/passwd"}}')(folder),
        ),
        "weight_map",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_folders(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    spoil, fragment = BAD_FOLDERS[case]
    tiny_hf(tmp_path / "model")
    spoil(tmp_path / "model")
    assert_one_error(cli.exit_code(run(tmp_path / "model")), *capfd.readouterr(), fragment)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0])
def test_a_ternary_scale_without_meaning(tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float) -> None:
    tiny_hf(tmp_path, family="bitnet")
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    begin, _ = json.loads(raw[8 : 8 + length])[UP + "_scale"]["data_offsets"]
    at = 8 + length + begin
    (tmp_path / "model.safetensors").write_bytes(raw[:at] + bfloat16(np.float32([scale])).tobytes() + raw[at + 2 :])
    assert_one_error(cli.exit_code(run(tmp_path)), *capsys.readouterr(), "up_proj", "finite")


@pytest.mark.parametrize("size", [4, 8, 200, -1])
def test_safetensors_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int) -> None:
    tiny_hf(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_one_error(cli.exit_code(run(tmp_path)), *capsys.readouterr(), "model.safetensors", "; ")


def test_the_models_run_unspoilt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Then it is what the tables spoil that the errors are about."""
    tiny_hf(tmp_path / "hf")
    state()(tmp_path / "hf")
    tiny_hf(tmp_path / "bitnet", family="bitnet")
    quantised = spoilt_gguf(tmp_path / "q4_0.gguf", lambda *_: None, "Q4_0")
    for path in (tiny_llama_gguf(tmp_path / "model.gguf"), tmp_path / "hf", tmp_path / "bitnet", quantised):
        assert cli.exit_code(run(path)) == 0, capsys.readouterr().err
