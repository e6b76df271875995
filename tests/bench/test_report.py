"""Tables align, JSON and CSV can be read back, and each names machine and command."""

import csv
import io
import json
from typing import Any

from lutra import __version__
from lutra.bench import report


class Line:
    """A result of one name and one number."""

    def __init__(self, name: str, number: float):
        self.name, self.number = name, number

    def cells(self) -> dict[str, str]:
        return {"name": self.name, "tok/s": f"{self.number:.1f}"}

    def numbers(self) -> dict[str, Any]:
        return {"name": self.name, "tok_per_s": self.number}


LINES = [Line("a", 1.5), Line("longer", 123.25)]


def test_a_table_is_markdown_with_numbers_to_the_right() -> None:
    assert report.to_table([line.cells() for line in LINES]).splitlines() == [
        "| name   | tok/s |",
        "| ------ | ----: |",
        "| a      |   1.5 |",
        "| longer | 123.2 |",
    ]


def test_a_column_that_only_some_rows_have() -> None:
    table = report.to_table([{"name": "a"}, {"name": "b", "ratio": "2.0"}])
    assert table.splitlines()[2:] == ["| a    |       |", "| b    |   2.0 |"]


def test_json_holds_machine_command_and_rows() -> None:
    found = json.loads(report.render(LINES, "json", "lutra bench"))
    assert found["command"] == "lutra bench" and __version__ in found["machine"]
    assert found["rows"] == [line.numbers() for line in LINES]


def test_every_csv_row_can_be_quoted_alone() -> None:
    rows = list(csv.DictReader(io.StringIO(report.render(LINES, "csv", "lutra bench -n 1"))))
    assert [(row["name"], float(row["tok_per_s"])) for row in rows] == [("a", 1.5), ("longer", 123.25)]
    assert all(row["command"] == "lutra bench -n 1" and "cores" in row["machine"] for row in rows)
