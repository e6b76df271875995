"""Files of questions and rows of text, as data sets are published: JSON Lines, read at the door.

A question is a few pairs of a context and a continuation, of which one is right; a model answers with the pair it
holds for likeliest.  LAYOUTS has a row for every way of writing a question down; the fields of a line choose the row.
"""

from __future__ import annotations

import bz2
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lutra.errors import FileError

ANSWER = "\nAnswer:"  # follows a question, as in lm-eval's templates for ARC and PIQA
CONNECTIVES = {"cause": "because", "effect": "therefore"}  # of COPA
MAX_BYTES = 1 << 28
HELLASWAG_LINES = 6  # of a question in the plain text version: context, right one, four endings


@dataclass(frozen=True)
class Question:
    """Pairs (context, continuation), of which the one at `right` is the answer.

    A question with a single pair asks whether the continuation is what the model would say.
    """

    pairs: tuple[tuple[str, str], ...]
    right: int

    @property
    def is_cloze(self) -> bool:
        return len(self.pairs) == 1


@dataclass(frozen=True)
class Layout:
    """A row of LAYOUTS.

    fields   those that a line must have; the first row that finds all of its own reads the line
    read     the line's object → Question; may raise KeyError, TypeError, ValueError, IndexError
    """

    fields: tuple[str, ...]
    read: Callable[[dict[str, Any]], Question]
    source: str


def choices(context: str, endings: list[str], right: int) -> Question:
    """One context, several endings."""
    return Question(tuple((context, " " + ending.strip()) for ending in endings), right)


def asked(question: str) -> str:
    return f"Question: {question.strip()}{ANSWER}"


def _read_query(line: dict[str, Any]) -> Question:
    query = line["query"].strip()
    context = query + ANSWER if query.startswith("Question:") else query
    return choices(context, line["choices"], line["gold"])


def _read_options(line: dict[str, Any]) -> Question:
    ending = " " + line["continuation"].strip()
    return Question(tuple((option.strip(), ending) for option in line["context_options"]), line["gold"])


def _read_cloze(line: dict[str, Any]) -> Question:
    return Question(((line["context"].rstrip(), " " + line["continuation"].strip()),), 0)


def _read_last_word(line: dict[str, Any]) -> Question:
    context, word = line["text"].rstrip().rsplit(maxsplit=1)
    return Question(((context, " " + word),), 0)


def _read_arc(line: dict[str, Any]) -> Question:
    right = line["choices"]["label"].index(line["answerKey"])
    return choices(asked(line["question"]), line["choices"]["text"], right)


def _read_piqa(line: dict[str, Any]) -> Question:
    return choices(asked(line["goal"]), [line["sol1"], line["sol2"]], line["label"])


def _read_hellaswag(line: dict[str, Any]) -> Question:
    return choices(f"{line['activity_label']}: {line['ctx']}", line["endings"], int(line["label"]))


def _read_winogrande(line: dict[str, Any]) -> Question:
    before, after = line["sentence"].split("_")
    ending = " " + after.strip()
    pairs = tuple(((before + option).strip(), ending) for option in (line["option1"], line["option2"]))
    return Question(pairs, int(line["answer"]) - 1)


def _read_copa(line: dict[str, Any]) -> Question:
    premise = line["premise"].strip().removesuffix(".")
    endings = [ending[:1].lower() + ending[1:] for ending in (line["choice1"], line["choice2"])]
    return choices(f"{premise} {CONNECTIVES[line['question']]}", endings, line["label"])


LAYOUTS = (
    Layout(("query", "choices", "gold"), _read_query, "llm-foundry: ARC, PIQA, COPA, HellaSwag"),
    Layout(("context_options", "continuation", "gold"), _read_options, "llm-foundry: WinoGrande"),
    Layout(("context", "continuation"), _read_cloze, "llm-foundry: LAMBADA"),
    Layout(("question", "choices", "answerKey"), _read_arc, "allenai/ai2_arc"),
    Layout(("goal", "sol1", "sol2", "label"), _read_piqa, "ybisk/piqa"),
    Layout(("activity_label", "ctx", "endings", "label"), _read_hellaswag, "rowan/hellaswag"),
    Layout(("sentence", "option1", "option2", "answer"), _read_winogrande, "allenai/winogrande"),
    Layout(("premise", "choice1", "choice2", "question", "label"), _read_copa, "super_glue, copa"),
    Layout(("text",), _read_last_word, "EleutherAI/lambada_openai: the last word is asked for"),
)


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """Read the questions of a .jsonl file, or of HellaSwag's plain text (.txt); either may be packed as .bz2.

    limit    the first so many; None for all
    raises   FileError   a file that cannot be read, a line in no layout of LAYOUTS, no question at all
    """
    text = _read(path)
    suffix = Path(path.stem if path.suffix == ".bz2" else path.name).suffix
    found = list(islice((_plain if suffix == ".txt" else _json_lines)(text, str(path)), limit))
    if not found:
        raise FileError(f"{path}: expected questions, got an empty file; give another")
    return found


def _read(path: Path) -> str:
    try:
        with (bz2.open if path.suffix == ".bz2" else open)(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise FileError(f"{path}: expected at most {MAX_BYTES} bytes, got more; give a part of it")
        return data.decode("utf-8")
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(f"{path}: expected a file of questions, got: {reason}; check the path") from None
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: expected UTF-8, got {error.reason} at byte {error.start}; convert it") from None


def _plain(text: str, name: str) -> Iterator[Question]:
    """HellaSwag as klosax/hellaswag_text_data has it: six lines a question."""
    lines = text.splitlines()
    for start in range(0, len(lines), HELLASWAG_LINES):
        context, right, *endings = lines[start : start + HELLASWAG_LINES] + [""] * HELLASWAG_LINES
        if right not in ("0", "1", "2", "3") or not endings[3]:
            raise _refusal(name, start + 1, f"{HELLASWAG_LINES} lines of a question, the second 0 to 3", right)
        yield choices(context, endings[:4], int(right))


def _json_lines(text: str, name: str) -> Iterator[Question]:
    for number, line in _objects(text, name):
        layout = next((row for row in LAYOUTS if set(row.fields) <= line.keys()), None)
        if layout is None:
            known = "; ".join(" ".join(row.fields) for row in LAYOUTS)
            raise _refusal(name, number, f"the fields of one of: {known}", " ".join(map(str, line)))
        try:
            question = layout.read(line)
            if type(question.right) is not int or not 0 <= question.right < len(question.pairs):
                raise ValueError(f"answer {question.right!r} of {len(question.pairs)}")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise _refusal(name, number, f"a question as of {layout.source}", repr(error)) from None
        yield question


def _objects(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise _refusal(name, number, "a JSON object", line)
        yield number, value


def _refusal(name: str, number: int, expected: str, got: str) -> FileError:
    return FileError(f"{name}: line {number}: expected {expected}, got {got[:80]!r}; correct or remove the line")


def joined_rows(text: str, name: str) -> str:
    """The "text" of every line of JSON Lines, joined by empty lines: what GPTQ's protocol measures.

    raises   FileError   a line that is no object with a "text"
    """
    rows = []
    for number, line in _objects(text, name):
        if not isinstance(line.get("text"), str):
            raise _refusal(name, number, 'an object with a "text"', " ".join(map(str, line)))
        rows.append(line["text"])
    return "\n\n".join(rows)
