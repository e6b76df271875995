"""A tiny model whose weights get formats by bits, by bytes and by what may be lost."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lutra import cli
from lutra.cli import allocate
from lutra.cli.conditions import FORMATS, condition
from lutra.engine.llm import LLM
from lutra.errors import FileError, FormatError, RequestError
from lutra.formats import catalog
from lutra.model import sensitivity
from lutra.model.inputs import units
from lutra.model.pack import pack
from tests.files.make_models import tiny_llama_gguf

TEXT = "It was the best of times, it was the worst of times. " * 4
NAMES = ("planes2-g64-mins", "planes4-g32", "int8-g32")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("allocate") / "tiny.gguf")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel times by bytes: measuring them is tests/model/test_sensitivity.py's."""

    def times(wanted: dict[str, Any], formats: list[Any], rows: int, workers: object) -> dict[str, dict[str, float]]:
        return {
            unit: {format.name: n * k * format.bits / 8e4 for format in formats} for unit, (n, k) in wanted.items()
        }

    monkeypatch.setattr(sensitivity, "kernel_times", times)


@pytest.fixture
def llm(path: Path) -> LLM:
    return LLM.load(path, threads=1, context=64)


def chosen(llm: LLM, text: str | None, names: Sequence[str], **conditions: Any) -> allocate.Choice:
    wanted = condition(llm.model.file, llm.config, names, **conditions)
    return allocate.allocate(llm, text, wanted, names)


def test_bits_per_weight_are_kept_and_used(llm: LLM) -> None:
    few, many = (chosen(llm, TEXT, NAMES, bpw=bpw) for bpw in (4.0, 6.0))
    names = {name for names in units(llm.config).values() for name in names}
    for choice, bpw in ((few, 4.0), (many, 6.0)):
        assert set(choice.formats) - {"head"} == names and set(choice.formats.values()) <= set(NAMES)
        used = float(choice.report.split("MB, ")[1].split(" bits")[0])
        assert bpw - 1 < used <= bpw
        assert "one user: " in choice.report and "batched: " in choice.report and "measured" in choice.report
    assert few.usual in NAMES and sum(few.formats[name] != many.formats[name] for name in names) > 2


def test_a_budget_counts_what_is_not_quantised(llm: LLM) -> None:
    assert set(chosen(llm, TEXT, NAMES, bpw=8.6).formats.values()) == {"int8-g32"}
    with pytest.raises(RequestError) as refused:
        chosen(llm, TEXT, NAMES, budget="20KB")
    least = str(refused.value).split("at least ")[1].split(",")[0]
    assert "planes2-g64-mins takes" in str(refused.value) and "got 20KB" in str(refused.value)
    tight = chosen(llm, TEXT, NAMES, budget=least)  # what the message says is enough
    assert "planes2-g64-mins" in tight.formats.values()


@pytest.mark.parametrize("conditions", [{"bpw": 0.5}, {"budget": "10B"}])
def test_too_small_a_file_is_refused_before_anything_is_measured(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conditions: dict[str, Any]
) -> None:
    monkeypatch.setattr(LLM, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(RequestError, match="at least .* less than which planes1x2-g64-mins takes"):
        allocate.for_file(str(path), tmp_path / "a.safetensors", TEXT, 1, print, "one user", FORMATS, conditions)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_said_before_anything_is_measured(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LLM, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(FileError, match="a.formats.json: file: expected a folder that can be written to, got .*no; "):
        allocate.for_file(str(path), tmp_path / "no" / "a.safetensors", TEXT, 1, print, "one user", NAMES,
                          {"bpw": 4.0})  # fmt: skip


def test_a_packed_file_is_refused_before_anything_is_measured(path: Path, tmp_path: Path) -> None:
    pack(path, tmp_path / "a.lutra", "auto", lambda *_: None)
    with pytest.raises(RequestError, match="expected a model of named tensors, got .*a.lutra, which is packed"):
        allocate.for_file(str(tmp_path / "a.lutra"), tmp_path / "b.safetensors", None, 1, print, "one user", NAMES,
                          {"bpw": 4.0})  # fmt: skip


def test_the_file_keeps_its_budget(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    words = ["quantize", str(path), str(out), "--budget", "165KB", "--choose-from", ",".join(NAMES), "--threads", "1"]
    assert cli.exit_code([*words, "--no-speed"]) == 0 and 150_000 < out.stat().st_size <= 165_000


def test_a_limit_is_met_as_measured(llm: LLM) -> None:
    choice = chosen(llm, TEXT, NAMES, max_ppl_increase="20%")
    measured = float(choice.report.split("perplexity ")[1].split(" %")[0])
    assert measured <= 20
    with pytest.raises(RequestError, match="the increase below 2.22e-14 %, got .* with --choose-from"):
        chosen(llm, TEXT, NAMES[:1], max_ppl_increase=str(math.ulp(1.0)))


def test_without_a_text_the_model_writes_one(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocate, "TOKENS", 128)
    assert chosen(llm, None, NAMES[:2], bpw=4.0).formats


def test_vectors_are_refused_by_what_they_are(llm: LLM) -> None:
    with pytest.raises(FormatError, match="with levels in --choose-from, got vectors8, one of vectors; try int8-g32"):
        chosen(llm, TEXT, ["int8-g32", "vectors8"], bpw=4.0)


@pytest.mark.parametrize("conditions", [{}, {"bpw": 3.0, "budget": "1MB"}])
def test_one_condition_is_needed(llm: LLM, conditions: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="expected one of --budget"):
        chosen(llm, TEXT, NAMES, **conditions)


def test_another_model_at_the_same_place_is_another_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(LLM, "load", lambda path, **_: path)
    monkeypatch.setattr(allocate, "allocate", lambda llm, *_, **__: (asked.append(llm), allocate.Choice({}, ""))[1])
    words = str(tmp_path / "m.gguf"), tmp_path / "out.safetensors", TEXT, 1, print, "one user", NAMES, {"bpw": 4.0}
    for seed in (1, 2):
        tiny_llama_gguf(tmp_path / "m.gguf", seed=seed)
        os.utime(tmp_path / "m.gguf", ns=(seed, seed))
        for _ in range(2):
            allocate.for_file(*words)
        assert len(asked) == seed


def test_quantize_by_bits_per_weight(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "small.safetensors"
    words = ["quantize", str(path), str(out), "--bpw", "4", "--choose-from", ",".join(NAMES), "--threads", "1"]
    words += ["--calib", str(tmp_path / "text.txt"), "--calib-windows", "1", "--calib-tokens", "32", "--no-speed"]
    assert cli.exit_code([*words, "--method", "clip"]) == 0
    first = capsys.readouterr().out
    stated = json.loads((tmp_path / "small.formats.json").read_text())
    llm = LLM.load(out, threads=1, context=32)
    for name, format in stated.items():
        if not name.startswith("_"):
            assert llm.model.file.tensors[name].read().format == catalog.find(format), name
    assert cli.exit_code([*words, "--method", "clip"]) == 0  # asked again: the same formats, nothing measured
    assert capsys.readouterr().out == first


def test_no_format_and_no_budget(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["quantize", str(path), "out.safetensors"]) == 2
    assert "expected --format, or one of --budget" in capsys.readouterr().err
