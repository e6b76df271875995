"""What `lutra inspect model` says of a model."""

from pathlib import Path

import pytest

from lutra.model.describe import describe
from lutra.model.load import load_model
from tests.files.make_models import tiny_hf, tiny_llama_gguf


def lines(path: Path) -> list[str]:
    return describe(load_model(path, 1, 16, None)).splitlines()


def test_the_whole_text_of_a_small_model(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", quant="Q4_0")
    text = lines(path)
    assert text[0] == f"{path}  (llama, gguf)"
    assert text[1] == "hidden 64, ffn 160, 2 layers, 4 heads of 16, 2 of keys and values, silu"
    assert text[2] == "vocabulary 264, context 256, head of its own"
    assert text[3].startswith("a decoded token reads 0.1 MB of weights")
    assert text[4] == "a token of context takes 0.26 kB of keys and values in f16, 16 tokens 0.0 MB"
    assert text[5] == "" and text[6].split() == ["tensor", "stored", "as", "shape", "runs", "as"]
    rows = {row.split()[0]: row.split(maxsplit=1)[1] for row in text[7:]}
    assert len(rows) == len(text) - 7 == 3 + 2 * 9
    assert " ".join(rows["embed"].split()) == "F32 264 x 64 as stored"
    assert " ".join(rows["layers.1.up"].split()) == "Q4_0 160 x 64 re-coded to planes4-g32 (lossless)"
    assert rows["layers.0.attn_norm"].split()[:2] == ["F32", "64"]


@pytest.mark.parametrize(
    ("family", "stored", "runs"),
    [
        ("bitnet", "bitnet-u8", "re-coded to ternary"),
        ("bitnet-master", "BF16", "ternary"),
        ("llama", "F32", "as stored"),
    ],
)
def test_how_a_linear_is_stored_and_run(tmp_path: Path, family: str, stored: str, runs: str) -> None:
    tiny_hf(tmp_path, family=family)
    row = next(row for row in lines(tmp_path) if row.startswith("layers.0.down "))
    assert stored in row and runs in row


def test_a_tied_head_is_said(tmp_path: Path) -> None:
    tiny_hf(tmp_path, family="bitnet")
    assert lines(tmp_path)[2].endswith("head tied")
