"""Options that several commands have."""

from collections.abc import Callable
from typing import Any

import click

from lutra.engine.params import SamplingParams

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
kv_option = click.option(
    "--kv", default="f16", show_default=True, help="KV cache of f16, bf16, f32, int8, int4, kivi4 or kivi2."
)
head_option = click.option("--head", help="Round the head to this format, as planes4-g32.  Default: as stored.")
memory_options = options(threads_option, context_option, kv_option, head_option)
speed_options = options(
    click.option("--prefill-threads", type=click.IntRange(min=1), help="For the prompt.  Default: as --threads."),
    click.option("--stats/--no-stats", default=None, help="Speed at the end, on stderr.  Default: on a terminal."),
    click.option("-v", "--verbose", is_flag=True, help="Say what was loaded, and the speed."),
)
