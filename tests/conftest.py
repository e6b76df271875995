"""What every test shares: the data beside the checkout, and a kernel cache that no other run has touched.

LUTRA_SHARED   folder with models, texts and tokenizers; by default ../shared beside the repository.
               A test that needs it takes the `shared` fixture and is skipped where the folder is absent.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Products of NumPy and torch on one thread: the workers of xdist fill the cores already, and waiting threads burn them.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LUTRA_SHARED", REPOSITORY.parent / "shared"))

# A compile in the middle of an example is slow once and says nothing about the example.
settings.register_profile("lutra", deadline=None, print_blob=True)
settings.load_profile("lutra")


def pytest_configure(config: pytest.Config) -> None:
    """Give the session an empty kernel cache; xdist workers inherit the one of the process that started them."""
    if not hasattr(config, "workerinput"):
        os.environ["LUTRA_CACHE"] = tempfile.mkdtemp(prefix="lutra-test-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["LUTRA_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data, or a skip that says what is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the shared data folder: no {SHARED}/data; set LUTRA_SHARED")
    return SHARED
