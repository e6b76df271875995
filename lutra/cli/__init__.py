"""The command line: parse, call one function, print.

Exit codes   0 done · 1 doctor found a kernel that computes wrongly, or nobody reads the output any more
             2 something the user can mend, said in one line · 130 interrupted
A file per noun, each with its commands.  Whatever is heavy (NumPy, LLVM, the hub) is imported inside the command that
needs it.
"""

import os
import sys
from collections.abc import Sequence

import click

from lutra import __version__
from lutra.cli import bench, convert, inspect, quality, quantize, run, train, tune
from lutra.errors import LutraError


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lutra")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run language models whose weights have one to four bits, on kernels compiled for this CPU."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (
    run.run, run.chat, inspect.inspect, inspect.doctor, bench.command, tune.command, convert.pack, convert.export,
    quantize.command, quality.perplexity_command, quality.evaluate_command, quality.compare_command, train.train,
):  # fmt: skip
    cli.add_command(_command)


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
