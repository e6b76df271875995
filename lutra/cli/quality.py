"""What `lutra perplexity`, `compare` and `evaluate` are given, in words, and what they print."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from lutra.cli.input import read_text
from lutra.cli.model import load
from lutra.cli.options import head_option, kv_option, limit_option, memory_options, threads_option, window_option
from lutra.cli.show import LoadProgress

if TYPE_CHECKING:
    from lutra.engine.llm import LLM
    from lutra.engine.tasks import Result
    from lutra.model.layer_errors import LayerError


def perplexity(llm: "LLM", text: str, context: int | None, protocol: str) -> str:
    """Measure; return what is to be printed."""
    with LoadProgress(lines=True) as progress:
        return str(llm.measure(text, context, progress, protocol))


def text_of(file: BinaryIO) -> str:
    """The text of a file: UTF-8 as it is, or the "text" of every line of a .jsonl file, joined by empty lines.

    Raises FileError for bytes that are no UTF-8 and lines that are no such object.
    """
    from lutra.engine.readers import joined_rows

    text = read_text(file, file.name)
    return joined_rows(text, file.name) if Path(file.name).suffix == ".jsonl" else text


def evaluate(llm: "LLM", files: Sequence[Path], limit: int | None, output: str) -> str:
    """Ask the questions of every file; return what is to be printed."""
    import json

    from lutra.bench.report import to_table

    results = task_results(llm, files, limit)
    if output == "json":
        return json.dumps([result.to_json() for result in results], indent=1)
    return to_table([result.cells() for result in results])


def task_results(llm: "LLM", files: Sequence[Path], limit: int | None) -> "list[Result]":
    """Results of every file of questions; all are read before the first is asked."""
    from lutra.engine.readers import read_questions
    from lutra.engine.tasks import evaluate, task_name

    tasks = [(task_name(path), read_questions(path, limit)) for path in files]
    with LoadProgress(lines=True) as progress:
        return [evaluate(llm, name, questions, progress) for name, questions in tasks]


def compare(
    a: "LLM", b: "LLM", text: str | None, protocol: str, context: int | None, rounds: int, prompts: int,
    tasks: Sequence[Path], limit: int | None, layers: bool, output: str,
) -> str:  # fmt: skip
    """Measure both; return what is to be printed."""
    import json

    from lutra.bench.report import machine_line, to_table
    from lutra.engine import compare as comparing
    from lutra.engine import parting
    from lutra.model.layer_errors import check_alike

    if layers:  # said before minutes of measuring
        check_alike(a.model, b.model)
    with LoadProgress(lines=True) as progress:
        found = comparing.compare(a, b, text, protocol, context, rounds, prompts, progress)
    asked = [task_results(llm, tasks, limit) for llm in (a, b)]
    if output == "json":
        values = comparing.to_json(found)
        for value, results in zip(values, asked, strict=True):
            value["tasks"] = [result.to_json() for result in results]
        return json.dumps(values, indent=1)
    parts = [machine_line(), "", f"A {found.names[0]}", f"B {found.names[1]}", f"text: {found.text}", ""]
    parts += [to_table(list(comparing.rows(found))), "", *comparing.quality(found.divergence)]
    if found.partings:
        parts += parting.report(found.partings, a)
    if tasks:
        pairs = [pair for results in zip(*asked, strict=True) for pair in zip("AB", results, strict=True)]
        parts += ["", to_table([{"model": name, **result.cells()} for name, result in pairs])]
    if layers:
        parts += ["", to_table([error.cells() for error in layer_table(a, b, text)])]
    return "\n".join(parts)


def layer_table(a: "LLM", b: "LLM", text: str | None) -> "list[LayerError]":
    """The error of every linear of B beside A, the inputs those of A reading the text."""
    from lutra.engine.compare import written
    from lutra.model.inputs import collect
    from lutra.model.layer_errors import layer_errors

    tokens = (written(a) if text is None else a.tokens_of(text)[0])[: a.transformer.context]
    with LoadProgress(lines=True) as progress:
        return list(layer_errors(a.model, b.model, collect(a.transformer, [tokens]), progress))


@click.command("perplexity")
@click.argument("model")
@click.argument("file", type=click.File("rb"))
@click.option("--protocol", default="windows", show_default=True, help="windows, gptq or llama.cpp.")
@window_option
@threads_option
@kv_option
@head_option
def perplexity_command(
    model: str, file: BinaryIO, protocol: str, context: int | None, threads: int | None, kv: str, head: str | None
) -> None:
    """Measure how well MODEL expects the text in FILE (UTF-8; - is stdin): lower is better.

    \b
    lutra perplexity model.gguf wiki.test.raw --protocol llama.cpp    as llama-perplexity measures
    lutra perplexity model.gguf test.jsonl --protocol gptq            as papers do; the lines' "text", joined

    Numbers can be compared only where protocol, context and text are the same.
    """
    text = text_of(file)
    click.echo(perplexity(load(model, threads, context, kv=kv, head=head), text, context, protocol))


@click.command("evaluate")
@click.argument("model")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@limit_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@memory_options
def evaluate_command(
    model: str, files: tuple[Path, ...], limit: int | None, output: str, threads: int | None, context: int | None,
    kv: str, head: str | None,
) -> None:  # fmt: skip
    """Let MODEL answer the questions in every FILE, by log-likelihood: ARC, PIQA, HellaSwag, WinoGrande, COPA, LAMBADA.

    A file is JSON Lines as the data sets are published (or packed as .bz2); its fields say how it is read.
    """
    click.echo(evaluate(load(model, threads, context, kv=kv, head=head), files, limit, output))


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.option("--text", "file", type=click.File("rb"), help="Both read it.  Default: 1024 tokens that A writes.")
@click.option("--protocol", default="windows", show_default=True, help="As of `lutra perplexity`.")
@click.option("--tasks", multiple=True, type=click.Path(path_type=Path), help="A file of questions; may be repeated.")
@limit_option
@click.option("--prompts", type=click.IntRange(min=0), default=8, show_default=True, help="Greedy texts of both.")
@click.option("--layers", is_flag=True, help="Also the error of every linear.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of measuring speed.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@window_option
@threads_option
@kv_option
def compare_command(
    a: str, b: str, file: BinaryIO | None, context: int | None, threads: int | None, kv: str, **options: Any
) -> None:
    """Quality and speed of two models side by side: A the reference, B what became of it.

    \b
    lutra compare float.gguf small.gguf --text novel.txt --tasks arc_easy.jsonl

    Speed is measured in alternation; perplexity, divergence and agreement on the same windows of one text.
    """
    text = None if file is None else text_of(file)
    models = [load(model, threads, context, kv=kv) for model in (a, b)]
    click.echo(compare(models[0], models[1], text, context=context, **options))
