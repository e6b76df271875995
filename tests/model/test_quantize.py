"""A model quantised, saved and loaded; interrupted anywhere, it becomes the same file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutra.engine.llm import LLM
from lutra.errors import FileError, RequestError
from lutra.files import open_model, saved
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.model import calibrate
from lutra.model import quantize as quantize_module
from lutra.model.quantize import Summary, quantize
from lutra.model.recipe import Recipe
from lutra.quantize.methods import METHODS
from lutra.quantize.quality import output_error, sqnr_db
from lutra.quantize.rounding import round_to_nearest
from tests.files.make_models import tiny_hf, tiny_llama_gguf

TEXT = "the cat sat on the mat and in the end ran after another cat " * 40
FOUR = "planes4-g32-zeros"
CALIBRATED = Recipe(FOUR, "gptq", windows=6, length=48)


def silent(label: str, done: int, total: int) -> None:
    pass


def run(source: Path, target: Path, recipe: Recipe, progress: Callable[..., Any] = silent) -> Summary:
    return quantize(source, target, recipe, TEXT, 2, progress)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_hf(folder, "llama")
    return folder


RECIPES = [
    Recipe(FOUR, "rtn"),
    Recipe("planes1x2-g64-mins"),
    CALIBRATED,
    replace(CALIBRATED, method="gptq+clip", act_order=True),
    replace(CALIBRATED, sequential=True),
    replace(CALIBRATED, method="awq+clip"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.format}-{recipe.method}-{recipe.sequential}")
def test_interrupted_anywhere_the_file_is_the_same(recipe: Recipe, llama: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    run(llama, whole, recipe)

    class Interrupted(Exception):
        pass

    for stop in range(4):  # before anything, before each layer, and while the parts are joined
        def progress(label: str, done: int, total: int, stop: int = stop) -> None:
            if done == stop and (label.startswith(("layer", "embedding")) or stop == 3):
                raise Interrupted

        target = resumed.with_name(f"resumed{stop}.safetensors")
        with pytest.raises(Interrupted):
            run(llama, target, recipe, progress if stop < 3 else _stop_at_writing(Interrupted))
        assert not target.exists() and (tmp_path / f".resumed{stop}.safetensors.part").is_dir()
        run(llama, target, recipe)
        assert target.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_killed_while_joining_nothing_stays(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, work = tmp_path / "m.safetensors", tmp_path / ".m.safetensors.part"
    plain = Path.unlink
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Path, "unlink", lambda path, **options: plain(path, **options) if options else None)  # no time
        run(llama, target, Recipe(FOUR), _stop_at_writing(ZeroDivisionError))
    assert list(tmp_path.iterdir()) == [work] and (work / "joined.safetensors").exists()
    run(llama, target, Recipe(FOUR))
    assert list(tmp_path.iterdir()) == [target]


def _stop_at_writing(error: type[Exception]) -> Callable[..., None]:
    def progress(label: str, done: int, total: int) -> None:
        if label.startswith("writing"):
            raise error

    return progress


def test_done_layers_are_not_done_again(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.safetensors"
    with pytest.raises(ZeroDivisionError):
        run(llama, target, CALIBRATED, lambda label, done, total: 1 // (label != "layer 2 of 2"))
    written = []
    plain = saved.write
    monkeypatch.setattr(saved, "write", lambda path, *rest: (written.append(path.name), plain(path, *rest)))
    run(llama, target, CALIBRATED)
    assert written == ["layer-0001.safetensors"]


def test_the_text_goes_no_further_than_the_last_layer_left(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.safetensors"
    with pytest.raises(ZeroDivisionError):
        run(llama, target, CALIBRATED, _stop_at_writing(ZeroDivisionError))
    taken = []
    monkeypatch.setattr(calibrate.Stream, "layer", lambda *args: taken.append(args))
    run(llama, target, CALIBRATED)
    assert target.exists() and not taken


@pytest.mark.parametrize("change", [{"damp": 0.02}, {"windows": 5}, {"format": "planes3-g32-zeros"}])
def test_another_job_starts_anew(change: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    target, wanted = tmp_path / "m.safetensors", tmp_path / "wanted.safetensors"
    with pytest.raises(ZeroDivisionError):
        run(llama, target, CALIBRATED, lambda label, done, total: 1 // (label != "layer 2 of 2"))
    run(llama, target, replace(CALIBRATED, **change))
    run(llama, wanted, replace(CALIBRATED, **change))
    assert target.read_bytes() == wanted.read_bytes()


def test_another_version_starts_anew(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.safetensors"
    with pytest.raises(ZeroDivisionError):
        run(llama, target, Recipe(FOUR), _stop_at_writing(ZeroDivisionError))
    written, plain = [], saved.write
    monkeypatch.setattr(saved, "write", lambda path, *rest: (written.append(path.name), plain(path, *rest)))
    monkeypatch.setattr(quantize_module, "__version__", "0.0.1")
    run(llama, target, Recipe(FOUR))
    assert written == ["outside.safetensors", "layer-0000.safetensors", "layer-0001.safetensors"]


def test_two_runs_do_not_mix_their_layers(llama: Path, tmp_path: Path) -> None:
    target, wanted, refused = tmp_path / "m.safetensors", tmp_path / "wanted.safetensors", []

    def progress(label: str, done: int, total: int) -> None:
        if label.startswith("layer"):
            with pytest.raises(RequestError, match="m.safetensors to be written by one run at a time") as error:
                run(llama, target, Recipe("planes2-g32-mins"))
            refused.append(str(error.value))

    run(llama, target, Recipe(FOUR), progress)
    run(llama, wanted, Recipe(FOUR))
    assert len(refused) == 2 and all("\n" not in text for text in refused)
    assert target.read_bytes() == wanted.read_bytes() and sorted(tmp_path.iterdir()) == [target, wanted]
    run(llama, target, Recipe("planes2-g32-mins"))  # and it is free again


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_decide_nothing(threads: int, llama: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    run(llama, one, Recipe(FOUR))
    quantize(llama, two, Recipe(FOUR), None, threads, silent)
    assert one.read_bytes() == two.read_bytes()


def test_weights_are_what_the_quantiser_makes(llama: Path, tmp_path: Path) -> None:
    keep = (("layers.1.*", "as-stored"), ("layers.1.o", "int8-g32"))
    summary = run(llama, tmp_path / "m.safetensors", Recipe(FOUR, "rtn", keep, head="planes4-g32"))
    source, found = open_model(llama), open_model(tmp_path / "m.safetensors")
    for name in ("layers.0.q", "layers.0.down"):
        wanted = round_to_nearest(np.asarray(source.tensors[name].read()), catalog.find(FOUR))
        read = found.tensors[name].read()
        assert isinstance(read, QTensor) and np.array_equal(read.dequantize(), wanted.dequantize())
    assert np.array_equal(found.tensors["layers.1.up"].read(), source.tensors["layers.1.up"].read())
    assert found.tensors["layers.1.o"].stored_type == "int8-g32"
    assert found.tensors["head"].stored_type == "planes4-g32" and found.tensors["embed"].stored_type == "F32"
    assert summary.formats() == {FOUR: 7, "int8-g32": 1, "planes4-g32": 1}
    head = np.asarray(source.tensors["head"].read())
    wanted_db = sqnr_db(head, METHODS["rtn"].quantise(head, catalog.find("planes4-g32")).dequantize())
    assert summary.sqnr_db()["head"] == pytest.approx(wanted_db, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "bitnet-master"])
def test_every_family_runs_afterwards(family: str, tmp_path: Path) -> None:
    tiny_hf(tmp_path / "in", family)
    for method in ("gptq", "awq"):
        run(tmp_path / "in", tmp_path / "m.safetensors", replace(CALIBRATED, format="int8-g32", method=method))
        before, after = (LLM.load(path, threads=1) for path in (tmp_path / "in", tmp_path / "m.safetensors"))
        assert after.tokenizer.encode("the cat") == before.tokenizer.encode("the cat")
        assert after.config == before.config
        assert after.perplexity(TEXT[:300]) == pytest.approx(before.perplexity(TEXT[:300]), rel=0.03)


def test_gguf_and_our_own_file_are_sources_too(tmp_path: Path) -> None:
    tiny_llama_gguf(tmp_path / "m.gguf", quant="Q8_0")
    run(tmp_path / "m.gguf", tmp_path / "8.safetensors", Recipe("int8-g32", keep=(("*", "as-stored"),)))
    run(tmp_path / "8.safetensors", tmp_path / "4.safetensors", Recipe(FOUR, "rtn"))
    run(tmp_path / "m.gguf", tmp_path / "direct.safetensors", Recipe(FOUR, "rtn"))
    direct, twice = (open_model(tmp_path / f"{name}.safetensors") for name in ("direct", "4"))
    for name in direct.tensors:
        a, b = direct.tensors[name].read(), twice.tensors[name].read()
        values = [t.dequantize() if isinstance(t, QTensor) else np.asarray(t) for t in (a, b)]
        assert np.array_equal(*values)
    kept = open_model(tmp_path / "8.safetensors").tensors["layers.0.q"]
    assert kept.stored_type == "int8-g32"
    assert LLM.load(tmp_path / "4.safetensors", threads=1).perplexity(TEXT[:300]) > 1


def test_a_tied_head_gets_a_format_of_its_own(tmp_path: Path) -> None:
    tiny_hf(tmp_path / "in", "qwen3")
    run(tmp_path / "in", tmp_path / "m.safetensors", Recipe("int8-g32", head="int8-g32"))
    after = LLM.load(tmp_path / "m.safetensors", threads=1)
    before = LLM.load(tmp_path / "in", threads=1)
    assert not after.config.tied and before.config.tied
    assert after.perplexity(TEXT[:300]) == pytest.approx(before.perplexity(TEXT[:300]), rel=0.03)


def test_calibration_lowers_the_error_of_outputs(llama: Path, tmp_path: Path) -> None:
    """The errors of weights grow, those of what they compute on the text shrink."""
    three = replace(CALIBRATED, format="planes3-g32-zeros")
    rounded = run(llama, tmp_path / "r.safetensors", replace(three, method="rtn"))
    moved = run(llama, tmp_path / "g.safetensors", three)
    assert all(moved.sqnr_db()[kind] < db for kind, db in rounded.sqnr_db().items())
    x = np.asarray(open_model(llama).tensors["embed"].read())[np.frombuffer(TEXT.encode(), np.uint8) % 200]
    x = x / np.sqrt((x * x).mean(1, keepdims=True)) * np.asarray(open_model(llama).tensors["layers.0.attn_norm"].read())
    w = np.asarray(open_model(llama).tensors["layers.0.q"].read())
    errors = []
    for name in ("r", "g"):
        q = open_model(tmp_path / f"{name}.safetensors").tensors["layers.0.q"].read()
        assert isinstance(q, QTensor)
        errors.append(output_error(w, q.dequantize(), x.T @ x))
    assert errors[1] < 0.8 * errors[0]


def test_the_unusual_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="ends in .safetensors"):
        run(llama, tmp_path / "m.gguf", Recipe(FOUR))
    with pytest.raises(RequestError, match="give one with --calib"):
        quantize(llama, tmp_path / "m.safetensors", CALIBRATED, None, 1, silent)
    with pytest.raises(FileError, match="a folder that can be written to"):
        run(llama, tmp_path / "no" / "m.safetensors", Recipe(FOUR))
    with pytest.raises(FileError, match="nothing there"):
        run(tmp_path / "nothing.gguf", tmp_path / "m.safetensors", Recipe(FOUR))
