"""`lutra bench`: what its options mean, what it refuses, and a tiny model from end to end in each output."""

import csv
import io
import json
import shlex
import sys

import click
import pytest

from lutra import cli, machine
from lutra.cli.bench import Counts, Names

TINY = ["bench", "--shape", "tiny", "--rounds", "1", "-p", "4", "-n", "2", "--threads", "1"]


@pytest.mark.parametrize(
    ("text", "counts"), [("8", [8]), ("1,2", [1, 2]), ("1-4,8", [1, 2, 3, 4, 8]), ("3-3", [3]), ("2-1,5", [5])]
)
def test_counts(text: str, counts: list[int]) -> None:
    assert Counts().convert(text, None, None) == counts


@pytest.mark.parametrize("text", ["", "0", "a", "1,", "-3", "1-2-x", "5-1", "9999999", "1-99999999999", "1-2-3"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected whole numbers"):
        Counts().convert(text, None, None)


def test_names() -> None:
    assert Names().convert("ternary, planes4-g32", None, None) == ["ternary", "planes4-g32"]
    with pytest.raises(click.BadParameter, match="leave none empty"):
        Names().convert("ternary,", None, None)


def test_json_and_csv_hold_the_same_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code([*TINY, "-o", "json"]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)["rows"]
    assert row["decode_tok_per_s_best"] > 0 and row["prompt"] == 4 and "round 1 of 1" in err
    assert cli.exit_code([*TINY, "-o", "csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(line) == ["machine", "command", *row]


@pytest.mark.parametrize(
    ("words", "heading"), [([], "decode tok/s"), (["--kernels"], "launch"), (["--batch", "1-2"], "rows")]
)
def test_each_kind_of_table(
    words: list[str], heading: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lutra", *TINY, *words])
    assert cli.exit_code([*TINY, *words]) == 0
    machine_line, command, _, headings, *rows = capsys.readouterr().out.splitlines()
    assert "cores, lutra" in machine_line and command == shlex.join(["lutra", *TINY, *words])
    assert heading in [cell.strip() for cell in headings.split("|")] and len(rows) >= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "9b"], "expected a shape of"),
        (["--format", "ternery"], "did you mean"),
        (["--format", "planes4-g32", "--order", "trit5"], "expected"),
        (["--order", "row"], "expected an order of"),
        (["--rival", "llama-bench"], "expected --rival and --rival-model together"),
        (["--rival", "nowhere", "--rival-model", "nowhere"], "nowhere: expected a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err


def test_a_shape_larger_than_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 1 << 30)
    assert cli.exit_code(["bench", "--shape", "70b"]) == 2
    assert "GB of free memory for 70b in ternary, got 1.1 GB" in capsys.readouterr().err
