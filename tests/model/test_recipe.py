"""What is asked for: formats by pattern, methods by word, and one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from lutra.errors import FileError, FormatError, LutraError, RequestError
from lutra.model.random import random_config
from lutra.model.recipe import Recipe, parse_keep, plan, read_allocation

CONFIG = random_config("tiny")  # 4 layers


def test_the_last_pattern_that_fits_counts() -> None:
    keep = (("layers.*.down", "int8-g32"), ("layers.0.*", "planes2-g64-mins"), ("layers.0.v", "as-stored"))
    formats = plan(Recipe("planes4-g32", keep=keep, head="planes4-g64-mins"), CONFIG)
    names = {name: form.name if form else None for name, form in formats.items()}
    assert len(names) == 4 * 7 + 1
    assert names["layers.0.down"] == names["layers.0.q"] == "planes2-g64-mins" and names["layers.0.v"] is None
    assert names["layers.3.down"] == "int8-g32" and names["layers.3.q"] == "planes4-g32"
    assert names["head"] == "planes4-g64-mins"


@pytest.mark.parametrize(
    ("method", "calibrated", "base"),
    [(None, None, None), ("clip", None, "clip"), ("gptq", "gptq", "rtn"), ("gptq+clip", "gptq", "clip"),
     ("hlq-gptq", "gptq", "hlq"), ("awq", "awq", "rtn"), ("awq+clip", "awq", "rtn")],
)  # fmt: skip
def test_methods_are_words(method: str | None, calibrated: str | None, base: str | None) -> None:
    recipe = Recipe("planes4-g32", method)
    assert (recipe.calibrated, recipe.base) == (calibrated, base)


@pytest.mark.parametrize(
    ("recipe", "error", "said"),
    [
        (Recipe("planes9-g32"), FormatError, "name of a format"),
        (Recipe("planes4-g32", keep=(("q", "int8-g32"),)), RequestError, "fits none of layers.0.q to layers.3.down"),
        (Recipe("planes4-g32", keep=(("*.up", "int8-g32"),)), RequestError, "one format for gate and up of layer 0"),
        (Recipe("planes4-g32", "gptq+awq"), RequestError, "change --method"),
        (Recipe("planes4-g32", "clip+rtn"), RequestError, "change --method"),
        (Recipe("planes4-g32", "best"), RequestError, "change --method"),
        (Recipe("planes4-g32", "awq", sequential=True), RequestError, "--sequential"),
    ],
)
def test_what_cannot_be_done_is_refused(recipe: Recipe, error: type[LutraError], said: str) -> None:
    with pytest.raises(error, match=said):
        plan(recipe, CONFIG)


@pytest.mark.parametrize("damp", [float("nan"), float("inf"), -0.1])
def test_a_damping_is_a_number(damp: float) -> None:
    with pytest.raises(RequestError, match="expected a damping of 0 or more, got .* change --damp"):
        Recipe("planes4-g32", "gptq", damp=damp)


def test_keep_is_pattern_and_format() -> None:
    assert parse_keep(["layers.*.q=int8-g32", "a=b=c"]) == (("layers.*.q", "int8-g32"), ("a", "b=c"))
    for text in ("layers.0.q", "=int8-g32", "layers.0.q="):
        with pytest.raises(RequestError, match="PATTERN=FORMAT"):
            parse_keep([text])


def test_an_allocation_is_json(tmp_path: Path) -> None:
    path = tmp_path / "formats.json"
    path.write_text('{"_made_by": "lutra", "layers.0.q": "int8-g32"}')
    assert read_allocation(path) == (("layers.0.q", "int8-g32"),)
    path.write_text('{"layers.0.q": 4}')
    with pytest.raises(RequestError, match="name of a format for layers.0.q, got 4"):
        read_allocation(path)
    path.write_text("[]")
    with pytest.raises(FileError, match="JSON object"):
        read_allocation(path)
    with pytest.raises(RequestError, match="not there"):
        read_allocation(tmp_path / "none.json")
