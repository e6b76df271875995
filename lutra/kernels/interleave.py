"""Requests for cache lines between the computations of a turn, instead of in a burst."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Act = Callable[[], None]  # traces something when it is called


def interleaved(acts: Sequence[Act], asks: Sequence[Act]) -> Iterator[Act]:
    """All acts, and evenly between them the asks.

    A core waits for few lines at once.  Asked for in a burst they hold its own loads up: 1 bit decodes a fifth slower.
    """
    for i, act in enumerate(acts):
        yield act
        yield from asks[i * len(asks) // len(acts) : (i + 1) * len(asks) // len(acts)]
