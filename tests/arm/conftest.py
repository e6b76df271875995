"""Everything here is skipped, with the reason, where there is no emulator or no linker for aarch64."""

import pytest

from tests.arm.emulator import Emulator, missing


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if missing():
        pytest.skip(missing())
    return Emulator.build(tmp_path_factory.mktemp("arm"))
