"""The public names, and what `import lutra` does not load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lutra

LIGHT = "import sys, json; before = set(sys.modules); {}; print(json.dumps(sorted(set(sys.modules) - before)))"


def modules_loaded_by(statement: str, folder: Path) -> list[str]:
    """Run a statement in a fresh Python and list the top-level modules that it brought in."""
    out = subprocess.run(
        [sys.executable, "-c", LIGHT.format(statement)], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    return sorted({name.split(".")[0] for name in json.loads(out)} - sys.stdlib_module_names)


def test_import_lutra_loads_nothing_from_outside(repository: Path) -> None:
    assert modules_loaded_by("import lutra", repository) == ["lutra"]


def test_the_command_line_loads_only_click_before_a_command_runs(repository: Path) -> None:
    assert set(modules_loaded_by("import lutra.cli", repository)) <= {"lutra", "click", "typing_extensions", "colorama"}


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'lod'; it has LLM.*load"):
        lutra.lod  # noqa: B018


def test_public_names_are_those_of_their_modules() -> None:
    from lutra.engine.llm import LLM
    from lutra.engine.params import SamplingParams
    from lutra.errors import LutraError

    assert (lutra.LLM, lutra.SamplingParams, lutra.LutraError) == (LLM, SamplingParams, LutraError)
    assert lutra.load == LLM.load
    assert set(lutra.__all__) <= set(dir(lutra))
