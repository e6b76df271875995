"""What the README says is true: its commands are the ones .ci/run runs, they parse, and its paths exist."""

import re
import shlex
from pathlib import Path

import click
import pytest

from lutra.cli import cli
from lutra.debug import WORDS

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text("utf-8")


def shell_lines() -> list[str]:
    """The lines of the README's sh blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def lutra_commands(line: str) -> list[list[str]]:
    """The argument lists of every lutra in a shell line: past &&, pipes, redirections and VARIABLE=value."""
    commands: list[list[str]] = [[]]
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = iter(lexer)
    for word in words:
        if word in ("&&", "||", "|", ";"):
            commands.append([])
        elif word in ("<", ">"):
            next(words)
        elif commands[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            commands[-1].append(word)
    return [words[1:] for words in commands if words and words[0] in ("lutra", ".venv/bin/lutra")]


ALL_COMMANDS = [words for line in shell_lines() for words in lutra_commands(line)] + [
    shlex.split(span)[1:] for span in re.findall(r"`(lutra [^`]+)`", README)
]


def parse(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Parse a command line as click would, without running it."""
    context = command.make_context(command.name, list(words), parent=parent)
    if isinstance(command, click.Group) and words:
        name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        parse(inner, rest, context)


def test_lutra_commands_finds_them_in_a_line() -> None:
    assert lutra_commands('LUTRA_ISA=avx2 lutra run -m a "b c" < d && lutra doctor | less  # why') == [
        ["run", "-m", "a", "b c"], ["doctor"],
    ]


def test_there_are_two_set_up_commands_and_ci_runs_them() -> None:
    set_up = [line for line in shell_lines() if "pip install" in line]
    assert len(set_up) == 2
    ci = [line.strip("()") for line in (REPOSITORY / ".ci" / "run").read_text("utf-8").splitlines()]
    assert [line for line in ci if line in set_up] == set_up
    assert ci[-1] == set_up[-1], "the tests come last, so that pytest's line closes the run"


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_every_lutra_command_parses(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in words:
        if re.fullmatch(r"[\w-]+\.txt", name):
            (tmp_path / name).write_text("a text that the command line opens")
    parse(cli, words)


def test_every_path_of_the_map_exists() -> None:
    paths = re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE)
    assert len(paths) > 8
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_the_map_has_every_folder_of_the_package() -> None:
    files = [path.relative_to(REPOSITORY) for path in REPOSITORY.glob("lutra/*/*") if path.is_file()]
    folders = sorted({path.parent.as_posix() for path in files} - {"lutra/__pycache__"})
    assert [folder for folder in folders if f"| `{folder}/` |" not in README] == []


def test_every_kernel_named_is_a_file() -> None:
    names = set(re.findall(r"(?:inspect kernel |asm:)(\w+)", README))
    assert names and [name for name in names if not (REPOSITORY / "lutra" / "kernels" / f"{name}.py").exists()] == []


def test_every_debug_word_is_named() -> None:
    assert [word for word in WORDS if f"`{word}`" not in README] == []


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_the_excerpt_stands_in_the_kernel(repository: Path) -> None:
    """The lines shown under "Look inside one kernel", but for their indentation."""
    readme = (repository / "README.md").read_text("utf-8").split("## Look inside one kernel")[1]
    excerpt = [line.strip() for line in readme.split("```python")[1].split("```")[0].strip().splitlines()]
    source = [line.strip() for line in (repository / "lutra/kernels/matmul_mad.py").read_text("utf-8").splitlines()]
    assert any(source[i : i + len(excerpt)] == excerpt for i in range(len(source)))
