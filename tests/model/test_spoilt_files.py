"""Packed and quantised files of which anything may be wrong: a model that runs, or one error that says what to do.

Four hundred spoilt copies with a fixed seed: bytes and bits flipped, numbers of the header changed, bytes cut off, put
in and taken out.  None crashes, and none makes lutra hold much more than a whole file makes it hold.
"""

from __future__ import annotations

import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lutra.errors import LutraError
from lutra.model.load import load_model
from lutra.model.pack import pack
from lutra.model.quantize import quantize
from lutra.model.recipe import Recipe
from tests.files.make_models import tiny_llama_gguf

CASES = 20  # of each way to spoil, for each file
CONTEXT = 32
SPARE_BYTES = 1 << 20  # that an error's words and Python's own objects may take
TYPES = [b'"U8"', b'"I8"', b'"F16"', b'"BF16"', b'"F32"', b'"I32"', b'"I64"', b'"F8_E4M3"']

Spoil = Callable[[random.Random, bytes, int], bytes]  # (chance, whole file, where its tensors begin) -> spoilt file


def header_byte(chance: random.Random, data: bytes, begin: int) -> bytes:
    at = chance.randrange(begin)
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def body_bit(chance: random.Random, data: bytes, begin: int) -> bytes:
    at = chance.randrange(begin, len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def number(chance: random.Random, data: bytes, begin: int) -> bytes:
    """A number of the header becomes another of as many digits."""
    found = chance.choice(list(re.finditer(rb"\d+", data[8:begin])))
    size, value = len(found[0]), int(found[0])
    other = chance.choice([0, 1, value + 1, value - 1, 2 * value, value // 2, 10**size - 1]) % 10**size
    return data[: 8 + found.start()] + str(other).encode().rjust(size) + data[8 + found.end() :]


def element_type(chance: random.Random, data: bytes, begin: int) -> bytes:
    found = chance.choice(list(re.finditer(b"|".join(TYPES), data[8:begin])))
    other = chance.choice([kind for kind in TYPES if len(kind) <= len(found[0])])
    return data[: 8 + found.start()] + other.ljust(len(found[0])) + data[8 + found.end() :]


def cut_off(chance: random.Random, data: bytes, begin: int) -> bytes:
    return data[: chance.choice([chance.randrange(begin + 1), chance.randrange(len(data))])]


def put_in(chance: random.Random, data: bytes, begin: int) -> bytes:
    at = chance.choice([chance.randrange(begin), chance.randrange(len(data))])
    return data[:at] + chance.randbytes(chance.choice([1, 7, 64, 1000])) + data[at:]


def taken_out(chance: random.Random, data: bytes, begin: int) -> bytes:
    at = chance.choice([chance.randrange(begin), chance.randrange(len(data))])
    return data[:at] + data[at + chance.choice([1, 2, 64]) :]


SPOILS: list[Spoil] = [header_byte, body_bit, number, element_type, cut_off, put_in, taken_out]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A quantised file of two formats with a head of its own, and two packed ones."""
    folder = tmp_path_factory.mktemp("whole")
    source = tiny_llama_gguf(folder / "float.gguf")
    recipe = Recipe("planes4-g32-mins", "rtn", keep=(("layers.1.*", "planes3-g16-i8xf16"),), head="int8-g32")
    quantize(source, folder / "quantised.safetensors", recipe, None, 1, lambda *_: None)
    pack(folder / "quantised.safetensors", folder / "packed.lutra", "auto", lambda *_: None)
    pack(source, folder / "dense.lutra", "auto", lambda *_: None)
    return {name: (folder / name).read_bytes() for name in ("quantised.safetensors", "packed.lutra", "dense.lutra")}


def outcome(path: Path) -> str | None:
    """What an error says, None where the model is loaded and runs."""
    try:
        transformer = load_model(path, 1, CONTEXT, None).transformer
        transformer.prefill([1, 2, 3], 0)
    except LutraError as error:
        return str(error)
    assert isinstance(transformer.best, int | np.integer)
    return None


def held_bytes(path: Path) -> tuple[str | None, int]:
    tracemalloc.start()
    try:
        return outcome(path), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["quantised.safetensors", "packed.lutra", "dense.lutra"])
@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_file_runs_or_says_why_not(
    files: dict[str, bytes], tmp_path: Path, name: str, spoil: Spoil
) -> None:
    path, data, chance = tmp_path / name, files[name], random.Random(f"{name} {spoil.__name__}")
    begin = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data)
    assert outcome(path) is None
    said, whole = held_bytes(path)
    assert said is None
    for case in range(CASES):
        spoilt = spoil(chance, data, begin)
        path.write_bytes(spoilt)
        said, most = held_bytes(path)
        assert most <= whole + len(spoilt) + SPARE_BYTES, f"case {case} held {most} bytes, the whole file {whole}"
        assert said is None or (len(said) < 1000 and "\n" not in said and ";" in said), f"case {case}: {said}"
