"""The command line: a number that no run can have is one line and exit 2; Ctrl-C is 130."""

import sys

import pytest

from lutra.train import __main__ as command

NEEDED = ["train", "--corpus", "novels", "--stories", "stories", "--out", "run"]


@pytest.mark.parametrize("wrong", ["--length 0", "--length 4097", "--minutes 0", "--minutes nan", "--threads 0",
                                   "--story-share 0.1 1.5", "--story-share -0.1 0.5"])
def test_numbers_out_of_range(wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", NEEDED + wrong.split())
    assert command.main() == 2
    assert capsys.readouterr().err.startswith(f"error: expected {wrong.split()[0]}")


def test_interrupted_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", NEEDED)
    monkeypatch.setattr(command, "settle_process", lambda: None)
    monkeypatch.setattr(command, "run", interrupt)
    assert command.main() == 130
