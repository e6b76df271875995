"""How the command line shows text, progress and speed: the text on stdout, everything else on stderr."""

import math
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from lutra.engine.llm import Stats

QUIET_S = 0.7  # work shorter than this shows no progress
LINE_S = 10  # between lines of it


def show_text(pieces: Iterable[str], prompt: str = "") -> str:
    """Print text as it comes and return all of it; on a terminal the prompt stands before it, dimmed."""
    if prompt and sys.stdout.isatty():
        click.secho(prompt, dim=True, nl=False)
    text = ""
    for piece in pieces:
        text += piece
        sys.stdout.write(piece)
        sys.stdout.flush()
    if not text.endswith("\n"):
        click.echo()
    return text


def stats_line(stats: "Stats") -> str:
    """Say how fast it went: rates in tokens per second, times in milliseconds."""
    prefilled = stats.prompt_tokens - stats.cached_tokens
    decoded = stats.generated_tokens - 1  # the first token belongs to prefill
    cached = f" ({stats.cached_tokens} cached)" if stats.cached_tokens else ""
    return (
        f"prompt {stats.prompt_tokens} tokens{cached}, {rate(prefilled, stats.prefill_s)} tok/s"
        f" · text {stats.generated_tokens} tokens, {rate(decoded, stats.decode_s)} tok/s"
        f" · first token {stats.first_token_s * 1e3:.0f} ms · load {stats.load_s * 1e3:.0f} ms"
    )


def rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.1f}" if count > 0 and seconds > 0 else "-"


class LoadProgress:
    """A progress bar on stderr for work that takes long enough to need one; rich is imported only then.

    Called as progress(label, done, total) while the work goes on.  Where stderr is no terminal nothing is shown, or,
    with `lines`, a line of text every LINE_S seconds.
    """

    def __init__(self, lines: bool = False) -> None:
        self.lines = lines
        self.started_s = time.monotonic()
        self.said_s = -math.inf
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.bar is None and now - self.started_s > QUIET_S:
            if sys.stderr.isatty():
                self.open()
            elif self.lines and now - self.said_s > LINE_S:
                self.said_s = now
                click.echo(f"{label}, {done} of {total}", err=True)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=label, completed=done, total=total)

    def open(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("loading")
        self.bar.start()

    def __enter__(self) -> "LoadProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
