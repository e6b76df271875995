"""Which model a word means: a path, a shipped one, nothing, or a repository of the hub."""

from pathlib import Path
from typing import Any

import pytest

from lutra.cli import hub, model
from lutra.errors import FileError


def test_no_name_is_the_default_model() -> None:
    assert model.resolve(None) is None


def test_an_existing_path_is_itself(tmp_path: Path) -> None:
    assert model.resolve(str(tmp_path)) == str(tmp_path)


def test_a_shipped_model_has_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tales").mkdir()
    monkeypatch.setattr(model, "SHIPPED", tmp_path)
    assert model.resolve("tales") == str(tmp_path / "tales")


@pytest.mark.parametrize(
    "name", ["nothere", "no/such.gguf", "/no/such/folder", "../..x/y", "../x", "./x", "Once upon", "a/b:c/d"]
)
def test_a_name_of_nothing_is_an_error(name: str) -> None:
    with pytest.raises(FileError, match="expected a model, got .* give a .gguf file"):
        model.resolve(name)


# ---- the hub --------------------------------------------------------------------------------------------------------


def hub_with(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> dict[str, Any]:
    """Let the hub be a folder with these files; returns what it was asked for."""
    call: dict[str, Any] = {}

    def snapshot_download(repo: str, **options: Any) -> str:
        call.update(repo=repo, **options)
        with options["tqdm_class"](total=2, desc="Fetching", name="of the hub") as bar:
            bar.update(1)
            bar.set_description("still")
            bar.total = 3
            bar.refresh()
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return call


def test_a_repository_gives_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = hub_with(monkeypatch, tmp_path, "config.json", "model.safetensors")
    assert model.resolve("org/repo") == str(tmp_path)
    assert call["repo"] == "org/repo" and "*.safetensors" in call["allow_patterns"]
    assert not any("gguf" in pattern for pattern in call["allow_patterns"])


def test_a_part_of_a_name_gives_one_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = hub_with(monkeypatch, tmp_path, "model-Q4_0.gguf")
    assert model.resolve("org/repo:Q4_0") == str(tmp_path / "model-Q4_0.gguf")
    assert call["allow_patterns"] == ["*Q4_0*.gguf"]


def test_two_matching_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, tmp_path, "a-Q4_0.gguf", "b-Q4_0.gguf")
    with pytest.raises(FileError, match="found a-Q4_0.gguf, b-Q4_0.gguf; say more of it"):
        hub.fetch("org/repo", "Q4_0")


def test_no_matching_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, tmp_path)
    with pytest.raises(FileError, match="found none"):
        hub.fetch("org/repo", "Q4_0")


def test_a_repository_of_gguf_files_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_with(monkeypatch, tmp_path)
    with pytest.raises(FileError, match="org/repo:Q4_0"):
        hub.fetch("org/repo")


def test_no_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def snapshot_download(repo: str, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(FileError, match=r"could not fetch org/repo .*\(ConnectionError: no route to host\); check"):
        hub.fetch("org/repo")
    assert capsys.readouterr() == ("", "")
