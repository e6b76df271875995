"""Everything here is skipped, with the reason, where there is no emulator or no linker for aarch64."""

import pytest

from lutra.compiler import targets
from tests.arm.emulator import Emulator, missing


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if missing():
        pytest.skip(missing())
    return Emulator.build(tmp_path_factory.mktemp("arm"))


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bound here is compiled again for ARM, which has no tile registers."""
    usual = targets.choose()
    if usual.has_tiles:
        monkeypatch.setenv("LUTRA_ISA", usual.vectors)
