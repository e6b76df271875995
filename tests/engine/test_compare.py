"""Two models side by side: numbers by hand, and a tiny model beside itself and beside another."""

import json
from pathlib import Path

import numpy as np
import pytest

from lutra.engine import compare
from lutra.engine.compare import Comparison, Size, Speed
from lutra.engine.divergence import Divergence
from lutra.engine.llm import LLM
from lutra.errors import RequestError
from tests.files.make_models import tiny_llama_gguf

TEXT = "It was the best of times, it was the worst of times. " * 4


def comparison() -> Comparison:
    scores = np.full(4, np.log(2.0))
    found = Divergence(np.zeros(4), np.array([True, True, True, False]), scores, 2 * scores)
    sizes = Size(8_000_000, 4_000_000, 32.0), Size(2_000_000, 1_000_000, 8.0)
    speeds = Speed((100.0, 200.0, 300.0), (10.0, 10.0, 10.0)), Speed((200.0, 200.0, 300.0), (30.0, 40.0, 20.0))
    return Comparison(("a", "b"), "a text", sizes, speeds, found, ())


def test_rows_by_hand() -> None:
    rows = {row["measure"]: (row["A"], row["B"], row["B / A"]) for row in compare.rows(comparison())}
    assert rows["file MB"] == ("8.00", "2.00", "0.250") and rows["bits per weight"] == ("32.000", "8.000", "0.250")
    assert rows["prefill tok/s"] == ("200.0", "200.0", "1.000")  # the median of 2, 1, 1, round by round
    assert rows["decode tok/s"] == ("10.0", "30.0", "3.000")
    assert rows["perplexity"] == ("2.0000", "4.0000", "2.000")
    lines = list(compare.quality(comparison().divergence))
    assert lines[0] == "loss increase   +0.69315 ± 0.00000 nats per token, over 4 tokens"
    assert lines[2] == "top-1 agreement 75.00 %"


def test_json_holds_the_same_numbers() -> None:
    a, b = json.loads(json.dumps(compare.to_json(comparison())))
    assert (a["name"], a["bytes"], a["decode_tok_s"], a["perplexity"]) == ("a", 4_000_000, 10, pytest.approx(2))
    assert "kl" not in a and b["kl"]["mean"] == 0 and b["top1"] == 0.75


def test_a_model_beside_itself(gguf: Path) -> None:
    a, b = (LLM.load(gguf, threads=1, context=64) for _ in range(2))
    told: list[str] = []
    found = compare.compare(a, b, TEXT, "windows", None, 2, 2, lambda label, done, total: told.append(label))
    assert not found.divergence.kl.any() and all(parting.is_same for parting in found.partings)
    assert found.sizes[0] == found.sizes[1] and found.sizes[0].file_bytes == gguf.stat().st_size
    assert found.sizes[0].bits_per_weight == pytest.approx(32, rel=0.1)  # padding counts
    assert len(found.speeds[0].decode) == 2 and min(found.speeds[1].prefill) > 0
    assert dict.fromkeys(told).keys() == {"measuring speed", "comparing", "continuing"}
    assert found.text == f"{len(a.tokens_of(TEXT)[0])} tokens, protocol windows, context 64"


def test_without_a_text_a_writes_one(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "WRITTEN", 100)
    a, b = (LLM.load(gguf, threads=1, context=32, head=head) for head in (None, "planes2-g64-mins"))
    first, again = compare.written(a, 100), compare.written(a, 100)
    assert first == again and len(first) == 100 and len(set(first)) > 10
    found = compare.compare(a, b, None, "windows", 16, 1, 0)
    assert found.divergence.kl.mean() > 0 and not found.partings and "tokens that A wrote" in found.text


def test_other_tokenizers_are_refused(gguf: Path, shared: Path) -> None:
    other = LLM.load(shared / "data/models/stories260K/stories260Ktok512.gguf", threads=1, context=32)
    with pytest.raises(RequestError, match="expected two models with the same tokenizer"):
        compare.compare(LLM.load(gguf, threads=1, context=32), other, TEXT, "windows", 16, 1, 0)


def test_sizes_count_the_head_once(tmp_path: Path) -> None:
    llm = LLM.load(tiny_llama_gguf(tmp_path / "q.gguf", quant="Q4_K", embed="Q6_K"), threads=1, context=16)
    size = compare.size(llm)
    assert size.read_bytes == llm.model.weights.bytes_per_token and 4 < size.bits_per_weight < 8
