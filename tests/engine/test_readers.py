"""Questions in every layout, by hand; the files of the shared folder; lines that are none."""

import bz2
import json
from pathlib import Path
from typing import Any

import pytest

from lutra.engine.readers import LAYOUTS, joined_rows, read_questions
from lutra.errors import FileError

# a line, and the pairs it asks about; the right one stands first
LINES: list[tuple[dict[str, Any], list[tuple[str, str]], int]] = [
    (
        {"query": "Question: What?\n", "choices": ["this", "that"], "gold": 1},
        [("Question: What?\nAnswer:", " this"), ("Question: What?\nAnswer:", " that")], 1,
    ),
    (
        {"query": "It rained, therefore", "choices": ["it was wet.", "it was dry."], "gold": 0},
        [("It rained, therefore", " it was wet."), ("It rained, therefore", " it was dry.")], 0,
    ),
    (
        {"context_options": ["A than B so A", "A than B so B"], "continuation": "won.", "gold": 0},
        [("A than B so A", " won."), ("A than B so B", " won.")], 0,
    ),
    ({"context": "I will go to ", "continuation": "bed"}, [("I will go to", " bed")], 0),
    (
        {"question": "What?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        [("Question: What?\nAnswer:", " x"), ("Question: What?\nAnswer:", " y")], 1,
    ),
    (
        {"goal": "Do it.", "sol1": "so", "sol2": "not so", "label": 0},
        [("Question: Do it.\nAnswer:", " so"), ("Question: Do it.\nAnswer:", " not so")], 0,
    ),
    (
        {"activity_label": "Run", "ctx": "A man", "endings": ["runs.", "flies."], "label": "0"},
        [("Run: A man", " runs."), ("Run: A man", " flies.")], 0,
    ),
    (
        {"sentence": "A saw B and _ smiled.", "option1": "A", "option2": "B", "answer": "2"},
        [("A saw B and A", " smiled."), ("A saw B and B", " smiled.")], 1,
    ),
    (
        {"premise": "It rained.", "choice1": "It was wet.", "choice2": "Sun.", "question": "effect", "label": 0},
        [("It rained therefore", " it was wet."), ("It rained therefore", " sun.")], 0,
    ),
    ({"text": "I will go to bed"}, [("I will go to", " bed")], 0),
]  # fmt: skip


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.mark.parametrize(("line", "pairs", "right"), LINES)
def test_every_layout_by_hand(tmp_path: Path, line: dict[str, Any], pairs: list[tuple[str, str]], right: int) -> None:
    [question] = read_questions(written(tmp_path / "task.jsonl", line))
    assert list(question.pairs) == pairs and question.right == right and question.is_cloze == (len(pairs) == 1)


def test_every_row_of_the_table_has_a_line() -> None:
    found = {next(row for row in LAYOUTS if set(row.fields) <= line.keys()) for line, _, _ in LINES}
    assert found == set(LAYOUTS)


def test_hellaswag_as_plain_text(tmp_path: Path) -> None:
    lines = ["Run: A man", "2", "runs.", "flies.", "sits.", "eats."] * 2
    with bz2.open(tmp_path / "h.txt.bz2", "wb") as file:
        file.write("\n".join(lines).encode())
    questions = read_questions(tmp_path / "h.txt.bz2")
    assert len(questions) == 2 and questions[0] == questions[1]
    assert questions[0].pairs[2] == ("Run: A man", " sits.") and questions[0].right == 2


BROKEN = [
    ("a.jsonl", b"", "expected questions, got an empty file"),
    ("a.jsonl", b"{", "line 1: expected a JSON object"),
    ("a.jsonl", b"[1]\n", "line 1: expected a JSON object"),
    ("a.jsonl", b'{"what": 1}', "line 1: expected the fields of one of"),
    ("a.jsonl", b'{"query": "a", "choices": ["b"], "gold": 1}', "line 1: expected a question as of llm-foundry"),
    ("a.jsonl", b'{"query": "a", "choices": ["b"], "gold": true}', "line 1: expected a question as of llm-foundry"),
    ("a.jsonl", b'{"query": 3, "choices": ["b"], "gold": 0}', "line 1: expected a question as of llm-foundry"),
    ("a.jsonl", b'{"sentence": "none", "option1": "", "option2": "", "answer": "1"}', "allenai/winogrande"),
    ("a.jsonl", b'{"text": "one"}', "line 1: expected a question as of EleutherAI"),
    ("a.jsonl", b'{"query": "\xff"}', "expected UTF-8"),
    ("a.jsonl.bz2", b"no bz2", "expected a file of questions"),
    ("a.txt", b"c\n4\na\nb\nc\nd\n", "line 1: expected 6 lines of a question"),
    ("a.txt", b"c\n1\na\nb\n", "line 1: expected 6 lines of a question"),
]


@pytest.mark.parametrize(("name", "content", "match"), BROKEN)
def test_what_is_no_question_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=match):
        read_questions(tmp_path / name)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a file of questions, got: No such file"):
        read_questions(tmp_path / "nowhere.jsonl")


def test_rows_of_text_are_joined_by_empty_lines() -> None:
    assert joined_rows('{"text": "a"}\n{"text": ""}\n\n{"text": "b"}', "rows") == "a\n\n\n\nb"
    with pytest.raises(FileError, match='rows: line 1: expected an object with a "text"'):
        joined_rows('{"words": "a"}', "rows")


SHARED = {
    "arc_easy.jsonl": (2376, 4), "arc_challenge.jsonl": (1172, 4), "piqa.jsonl": (1838, 2), "copa.jsonl": (100, 2),
    "winogrande.jsonl": (1267, 2), "lambada_openai.jsonl": (5153, 1), "hellaswag_val_full.txt.bz2": (10042, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_published_files(shared: Path, name: str) -> None:
    questions = read_questions(shared / "data" / "eval_jsonl" / name)
    count, pairs = SHARED[name]
    assert len(questions) == count and max(len(question.pairs) for question in questions) in (pairs, 5)
    assert len(read_questions(shared / "data" / "eval_jsonl" / name, limit=3)) == 3
