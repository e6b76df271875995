"""The parrot where a model would be."""

from typing import Any

import pytest

from lutra.cli import inspect, quality, run
from tests.cli.parrot import PARROT, Parrot


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Put the parrot where a model would be; collects what was asked to be loaded."""
    loads: list[tuple[Any, ...]] = []

    def load(*arguments: Any, **options: Any) -> Parrot:
        loads.append(arguments)
        return PARROT

    for module in (run, inspect, quality):
        monkeypatch.setattr(module, "load", load)
    return loads
