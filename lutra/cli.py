"""The command line: parse, call one function, print.

Exit codes   0 done · 1 doctor found a kernel that computes wrongly, or nobody reads the output any more
             2 something the user can mend, said in one line · 130 interrupted
Whatever is heavy (NumPy, LLVM, the hub) is imported inside the command that needs it.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from lutra import __version__, cli_quantize
from lutra.cli_bench import Counts, Names
from lutra.cli_input import read_message, read_prompt, split_words
from lutra.cli_model import resolve
from lutra.cli_show import LoadProgress, show_text, stats_line
from lutra.engine.params import SamplingParams
from lutra.errors import CapacityError, LutraError, RequestError

if TYPE_CHECKING:
    from lutra.engine.llm import LLM

Command = Callable[..., Any]


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Join several click decorators into one, in the order in which --help shows them."""

    def apply(command: Command) -> Command:
        for decorate in reversed(decorators):
            command = decorate(command)
        return command

    return apply


SAMPLING_HELP = {
    "max_tokens": "Stop after this many tokens.",
    "temperature": "0 always takes the likeliest token.",
    "top_p": "Keep the likeliest tokens that add up to this.",
    "top_k": "Keep this many of the likeliest tokens; 0 keeps all.",
    "min_p": "Drop tokens below this share of the likeliest one.",
    "seed": "The same seed gives the same text, on every machine.  [default: drawn anew]",
}


def sampling_option(name: str) -> Callable[[Command], Command]:
    """A flag for a field of SamplingParams, which has its default and checks its range."""
    default = getattr(SamplingParams, name)
    kind = float if isinstance(default, float) else int
    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, type=kind, default=default, show_default=True, help=SAMPLING_HELP[name])


sampling_options = options(*map(sampling_option, SAMPLING_HELP))
threads_option = click.option("--threads", type=click.IntRange(min=1), help="Default: the cores this process may use.")
context_option = click.option("--ctx", "context", type=click.IntRange(min=1), help="Tokens to make room for.")
window_option = click.option(
    "--context", "--ctx", "context", type=click.IntRange(min=1), help="Tokens of a window.  Default: the protocol's."
)
limit_option = click.option("--limit", type=click.IntRange(min=1), help="Only the first questions of a file.")
kv_option = click.option("--kv", default="f16", show_default=True, help="KV cache of f16, bf16, f32, int8 or int4.")
head_option = click.option("--head", help="Round the head to this format, as planes4-g32.  Default: as stored.")
memory_options = options(threads_option, context_option, kv_option, head_option)
speed_options = options(
    click.option("--prefill-threads", type=click.IntRange(min=1), help="For the prompt.  Default: as --threads."),
    click.option("--stats/--no-stats", default=None, help="Speed at the end, on stderr.  Default: on a terminal."),
    click.option("-v", "--verbose", is_flag=True, help="Say what was loaded, and the speed."),
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lutra")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run language models whose weights have one to four bits, on kernels compiled for this CPU."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
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


@cli.command()
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


@cli.group()
def inspect() -> None:
    """Look inside a model, a kernel or a format."""


@inspect.command("model")
@click.argument("model", required=False)
@kv_option
@head_option
def inspect_model(model: str | None, kv: str, head: str | None) -> None:
    """Print the shape of MODEL and how each of its tensors is stored and computed."""
    click.echo(load(model, kv=kv, head=head).describe())


@inspect.command("kernel")
@click.argument("name", required=False)
@click.option("--stage", "stages", multiple=True, type=click.Choice(["ir", "llvm", "asm"]), help="Only this stage.")
def inspect_kernel(name: str | None, stages: tuple[str, ...]) -> None:
    """Print what became of the kernel NAME: traced IR, LLVM text, assembly, counts, compile time.

    Without NAME, list the kernels in the cache.
    """
    from lutra import cli_kernel

    click.echo(cli_kernel.describe_kernel(name, stages or cli_kernel.STAGES) if name else cli_kernel.list_kernels())


@inspect.command("format")
@click.argument("name", required=False)
def inspect_format(name: str | None) -> None:
    """Print what the bits of the format NAME mean; without NAME, list the formats in use."""
    from lutra.formats import catalog

    if name is None:
        click.echo("\n".join(f"{known:24} {source}" for known, source in catalog.SOURCES.items()))
    else:
        click.echo(catalog.describe(name))


@cli.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Print what this machine can do, and run one kernel on every instruction set it has."""
    from lutra import machine

    click.echo(machine.report())
    results = machine.self_test()
    for isa, ok, detail in results:
        click.echo(f"{isa:10} {'ok' if ok else 'WRONG':6} {detail}")
    context.exit(0 if all(ok for _, ok, _ in results) else 1)


@cli.command()
@click.option("--shape", "shapes", type=Names(), default="2b", show_default=True, help="Sizes of the random model.")
@click.option("--format", "formats", type=Names(), default="ternary", show_default=True, help="Of all its weights.")
@click.option("--head", default="", help="Format of the head and embedding.  Default: that of the other weights.")
@click.option("--order", default="auto", show_default=True, help="Kernel family: auto, mad, lut, trit5.")
@kv_option
@click.option("-p", "--prompt", "prompts", type=Counts(), default="128", show_default=True, help="Tokens to prefill.")
@click.option("-n", "--gen", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens to decode.")
@click.option("--threads", type=Counts(), help="Default: the cores this process may use.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Measured that often.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option("--kernels", is_flag=True, help="Take one decode step and one chunk of prefill apart instead.")
@click.option("--batch", type=Counts(), help="Steps of so many rows instead, as 1-8,16: tokens per second of a batch.")
@click.option("--rival", type=click.Path(path_type=Path), help="A llama-bench that runs in every round.")
@click.option("--rival-model", type=click.Path(path_type=Path), help="The GGUF file it runs.")
def bench(**options: Any) -> None:
    """Measure tokens per second beside the roofs of this machine; no download.

    \b
    lutra bench --shape 2b --format ternary,planes4-g32 --threads 1,2     a row for each combination
    lutra bench --kernels                                                 where the time of a step goes
    lutra bench --batch 1-8,16,32                                         tokens per second over rows in a step

    Rates are the median of the rounds, half their interquartile range, and in brackets the best.
    """
    from lutra import cli_bench

    click.echo(cli_bench.bench(**options))


@cli.command()
@click.argument("model", required=False)
@click.option("--shape", help="Tune for a shape of `lutra bench` instead of a MODEL.")
@click.option("--format", default="ternary", show_default=True, help="Of the weights of that shape.")
@click.option("--head", default="", help="Format of its head.  Default: that of the other weights.")
@threads_option
def tune(model: str | None, **options: Any) -> None:
    """Find the fastest kernels for the weights of MODEL on this computer, in seconds, and keep them for its next load.

    \b
    lutra tune model.gguf
    lutra tune --shape 2b --format ternary

    Speed is all that changes: every choice gives the same text.  LUTRA_ISA=avx2 lutra tune does it for another
    instruction set.  `before` is what the tables of lutra/kernels/ say.
    """
    from lutra import cli_tune

    click.echo(cli_tune.tune(load, resolve(model), **options))


@cli.command()
@click.argument("model")
@click.argument("out", type=click.Path(dir_okay=False))
@click.option("--order", default="auto", show_default=True, help="Order of the weights; a wrong one lists them all.")
@head_option
def pack(model: str, out: str, order: str, head: str | None) -> None:
    """Write MODEL as one file OUT.lutra that is mapped and used in place: it loads at once, and processes share it.

    The same file runs on every CPU.  See docs/packed.md.
    """
    path = resolve(model) or model
    from lutra.model.pack import pack as write

    with LoadProgress() as progress:
        said = write(path, out, order, progress, head)
    click.echo(said)


@cli.command()
@click.argument("model")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def export(model: str, out: Path) -> None:
    """Write MODEL as a GGUF file OUT that llama.cpp and others read, without rounding anything.

    Formats that no GGUF type holds are refused; the message lists those that one does.
    """
    path = resolve(model) or model
    from lutra.model.to_gguf import export as write

    write(path, out)
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@cli.command()
@click.argument("model")
@click.argument("out", type=click.Path(dir_okay=False))
@options(*cli_quantize.options)
def quantize(model: str, out: str, **arguments: Any) -> None:
    """Write MODEL with weights of fewer bits as one file OUT.safetensors, which every other command takes as a model.

    \b
    lutra quantize model.gguf out.safetensors --format planes4-g32-mins
    lutra quantize org/repo out.safetensors --format planes1x2-g64-mins --method gptq+hlq --calib text.txt
    lutra quantize model out.safetensors --format planes3-g64-mins --keep "layers.*.down=planes4-g64-mins"

    Interrupted, the same command goes on where it was, and writes the same file.
    """
    click.echo(cli_quantize.quantize(resolve(model) or model, out, **arguments))


@cli.command()
@click.argument("model")
@click.argument("file", type=click.File("rb"))
@click.option("--protocol", default="windows", show_default=True, help="windows, gptq or llama.cpp.")
@window_option
@threads_option
@kv_option
@head_option
def perplexity(
    model: str, file: BinaryIO, protocol: str, context: int | None, threads: int | None, kv: str, head: str | None
) -> None:
    """Measure how well MODEL expects the text in FILE (UTF-8; - is stdin): lower is better.

    \b
    lutra perplexity model.gguf wiki.test.raw --protocol llama.cpp    as llama-perplexity measures
    lutra perplexity model.gguf test.jsonl --protocol gptq            as papers do; the lines' "text", joined

    Numbers can be compared only where protocol, context and text are the same.
    """
    from lutra import cli_quality

    text = cli_quality.text_of(file)
    click.echo(cli_quality.perplexity(load(model, threads, context, kv=kv, head=head), text, context, protocol))


@cli.command()
@click.argument("model")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@limit_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@memory_options
def evaluate(
    model: str, files: tuple[Path, ...], limit: int | None, output: str, threads: int | None, context: int | None,
    kv: str, head: str | None,
) -> None:  # fmt: skip
    """Let MODEL answer the questions in every FILE, by log-likelihood: ARC, PIQA, HellaSwag, WinoGrande, COPA, LAMBADA.

    A file is JSON Lines as the data sets are published (or packed as .bz2); its fields say how it is read.
    """
    from lutra import cli_quality

    click.echo(cli_quality.evaluate(load(model, threads, context, kv=kv, head=head), files, limit, output))


@cli.command()
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
def compare(
    a: str, b: str, file: BinaryIO | None, context: int | None, threads: int | None, kv: str, **options: Any
) -> None:
    """Quality and speed of two models side by side: A the reference, B what became of it.

    \b
    lutra compare float.gguf small.gguf --text novel.txt --tasks arc_easy.jsonl

    Speed is measured in alternation; perplexity, divergence and agreement on the same windows of one text.
    """
    from lutra import cli_quality

    text = None if file is None else cli_quality.text_of(file)
    models = [load(model, threads, context, kv=kv) for model in (a, b)]
    click.echo(cli_quality.compare(models[0], models[1], text, context=context, **options))


@cli.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """Train a ternary model in PyTorch; the same as python -m lutra.train, whose --help lists the arguments."""
    if importlib.util.find_spec("torch") is None:
        raise RequestError("training expected PyTorch, which is not installed; do: pip install 'lutra[train]'")
    import runpy

    sys.argv = ["lutra train", *arguments]
    runpy.run_module("lutra.train", run_name="__main__", alter_sys=True)


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


def load(
    model: str | None,
    threads: int | None = None,
    context: int | None = None,
    verbose: bool = False,
    kv: str = "f16",
    head: str | None = None,
    prefill_threads: int | None = None,
) -> "LLM":
    path = resolve(model)
    from lutra.engine.llm import LLM

    with LoadProgress() as progress:
        llm = LLM.load(
            path,
            threads=threads,
            context=context,
            progress=progress,
            kv=kv,
            head=head,
            prefill_threads=prefill_threads,
        )
    if verbose:
        click.echo(llm.describe(), err=True)
    return llm


def show_stats(llm: "LLM", stats: bool | None, verbose: bool) -> None:
    if verbose or (sys.stderr.isatty() if stats is None else stats):
        click.secho(stats_line(llm.stats), err=True, dim=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(exit_code(arguments))


def settle_streams() -> None:
    """Make stdin, stdout and stderr fit for any text, and those that the caller has closed fit for none."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model may write, and a user type, what the encoding lacks


def exit_code(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; what a user can cause becomes one line on stderr, never a traceback."""
    settle_streams()
    try:
        code = cli.main(arguments, prog_name="lutra", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except (click.Abort, KeyboardInterrupt):
        return 130  # click has ended the line
    except BrokenPipeError:  # found by the flush; click meets the others in the same way
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        return 1
    except (click.ClickException, LutraError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"error: {message}", err=True)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"see: {error.ctx.command_path} --help", err=True)
        return 2
