"""open_model, the one door for users."""

import os

import numpy as np
import pytest

from lutra.errors import FileError
from lutra.files import ModelFile, open_model
from lutra.files.door import check_apart
from lutra.files.identity import identity
from tests.files.make_models import tiny_hf, tiny_llama_gguf


def test_picks_by_suffix_or_folder(tmp_path):
    tiny_hf(tmp_path / "model")
    tiny_llama_gguf(tmp_path / "MODEL.GGUF")
    kinds = {path: open_model(tmp_path / path).kind for path in ("model", "model/model.safetensors", "MODEL.GGUF")}
    assert kinds == {"model": "safetensors", "model/model.safetensors": "safetensors", "MODEL.GGUF": "gguf"}


def test_both_containers_deliver_the_same_names_and_values(tmp_path):
    tiny_hf(tmp_path / "model", seed=3)
    tiny_llama_gguf(tmp_path / "model.gguf", seed=3)
    folder, file = open_model(tmp_path / "model"), open_model(str(tmp_path / "model.gguf"))
    assert isinstance(file, ModelFile) and file.folder == tmp_path and folder.folder == tmp_path / "model"
    assert folder.tensors.keys() == file.tensors.keys()
    for name, tensor in folder.tensors.items():
        assert tensor.shape == file.tensors[name].shape
        assert np.array_equal(tensor.read(), file.tensors[name].read()), name


@pytest.mark.parametrize("name", ["absent", "absent.gguf", "x" * 5000, "a\0b.gguf", "~nobody-of-that-name/model.gguf"])
def test_a_missing_path_says_what_to_pass(tmp_path, name):
    with pytest.raises(FileError, match=r"expected a model, got nothing there; give a \.gguf file"):
        open_model(os.path.join(tmp_path, name))


def test_a_disk_that_fails(tmp_path, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lutra.files.safetensors.open", fail)
    with pytest.raises(FileError, match="Permission denied; check its permissions"):
        open_model(tmp_path)


def test_other_files_and_folders(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(FileError, match=r"got '\.bin'; give a \.gguf file"):
        open_model(tmp_path / "model.bin")
    with pytest.raises(FileError, match=r"config\.json, got none; give"):
        open_model(tmp_path)


def test_a_folder_named_like_a_file(tmp_path):
    (tmp_path / "model.gguf").mkdir()
    with pytest.raises(FileError, match="config.json"):
        open_model(tmp_path / "model.gguf")


def test_a_folder_takes_no_weights_beside_its_own(tmp_path):
    """Of two .safetensors files in a folder nobody can tell which are the model's."""
    tiny_hf(tmp_path / "model")
    for name in ("model.safetensors", "config.json", "new.safetensors", "../model/new.safetensors"):
        with pytest.raises(FileError, match="expected a file that the model is not read from, got one of its own"):
            check_apart(tmp_path / "model", tmp_path / "model" / name)
    for name in ("model/new.gguf", "new.safetensors", "model/below/new.safetensors"):  # nobody reads those
        check_apart(tmp_path / "model", tmp_path / name)
    check_apart(tmp_path / "model" / "model.safetensors", tmp_path / "model" / "new.safetensors")
    check_apart(tmp_path / "no.safetensors", tmp_path / "no.safetensors")  # said elsewhere


def test_a_model_is_another_once_a_file_of_it_is(tmp_path, monkeypatch):
    tiny_hf(tmp_path / "model", seed=1)
    first = identity(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert identity(type(tmp_path)("model")) == first
    os.utime("model/model.safetensors", ns=(1, 1))
    assert identity(tmp_path / "model") != first and identity(tmp_path / "model" / "config.json") != first
