"""open_model, the one door for users."""

import os

import numpy as np
import pytest

from lutra.errors import FileError
from lutra.files import ModelFile, open_model
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
