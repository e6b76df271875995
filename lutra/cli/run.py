"""`lutra run` and `lutra chat`: what a model writes."""

import sys
from typing import TYPE_CHECKING, Any

import click

from lutra.cli.input import read_message, read_prompt, split_words
from lutra.cli.model import load
from lutra.cli.options import memory_options, sampling_options, speed_options
from lutra.cli.show import show_text, stats_line
from lutra.engine.params import SamplingParams
from lutra.errors import CapacityError

if TYPE_CHECKING:
    from lutra.engine.llm import LLM


@click.command()
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("-m", "--model", help="The model; then the one word left is the prompt.")
@sampling_options
@memory_options
@speed_options
def run(
    words: tuple[str, ...],
    model: str | None,
    threads: int | None,
    context: int | None,
    kv: str,
    head: str | None,
    prefill_threads: int | None,
    stats: bool | None,
    verbose: bool,
    **sampling: Any,
) -> None:
    """Continue PROMPT with MODEL, and print the text as it comes.

    \b
    lutra run "Once upon a time"              the model that comes with lutra
    lutra run model.gguf "Once upon a time"   another: a file, a folder, org/repo, or org/repo:part-of-file-name
    lutra run -m model.gguf - < prompt.txt    the prompt from stdin; so does no prompt at all in a pipe

    A single word is the MODEL if it is a path that exists or looks like org/repo; otherwise it is the PROMPT.
    Use -m where that guesses wrong.
    """
    params = SamplingParams(**sampling)
    model, prompt = split_words(words, model)
    text = read_prompt(prompt)
    llm = load(model, threads, context, verbose, kv, head, prefill_threads)
    show_text(llm.stream(text, params), prompt=text)
    show_stats(llm, stats, verbose)


@click.command()
@click.argument("model", required=False)
@click.option("--system", help="What the model is told before the first message.")
@sampling_options
@memory_options
@speed_options
def chat(
    model: str | None,
    system: str | None,
    threads: int | None,
    context: int | None,
    kv: str,
    head: str | None,
    prefill_threads: int | None,
    stats: bool | None,
    verbose: bool,
    **sampling: Any,
) -> None:
    """Talk with MODEL; one without a chat template is given a plain transcript to go on with.

    Ctrl-C stops an answer, Ctrl-D leaves, /clear forgets what was said.
    """
    params = SamplingParams(**sampling)
    llm = load(model, threads, context, verbose, kv, head, prefill_threads)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while (line := read_message()) is not None:
        if line == "/clear":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                messages.append({"role": "assistant", "content": answer(llm, messages, params)})
            except CapacityError as error:  # the conversation has outgrown the context
                if not sys.stdin.isatty():
                    raise
                messages.pop()
                click.echo(f"error: {error}, or forget what was said with /clear", err=True)
            else:
                show_stats(llm, stats, verbose)


def answer(llm: "LLM", messages: list[dict[str, str]], params: SamplingParams) -> str:
    """Print the model's next message and return it; Ctrl-C keeps what has come so far."""
    said: list[str] = []

    def pieces() -> Any:
        for piece in llm.chat(messages, params):
            said.append(piece)
            yield piece

    try:
        show_text(pieces())
    except KeyboardInterrupt:
        click.echo()
    return "".join(said)


def show_stats(llm: "LLM", stats: bool | None, verbose: bool) -> None:
    if verbose or (sys.stderr.isatty() if stats is None else stats):
        click.secho(stats_line(llm.stats), err=True, dim=True)
