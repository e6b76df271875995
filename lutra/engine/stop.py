"""Holding back text that may turn out to be a stop text."""

from __future__ import annotations


class StopText:
    """Passes text on until one of `stops` is complete; what could still become one is kept back.

    The stop that ends first counts, and of several that end together the longest: how the text is cut into pieces
    does not matter.
    """

    def __init__(self, stops: tuple[str, ...]):
        self.stops = stops
        self.held = ""
        self.is_over = False

    def push(self, text: str) -> str:
        """Add text; return what is certain not to belong to a stop."""
        if self.is_over:
            return ""
        self.held += text
        found = [(at + len(stop), at) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        self.is_over = bool(found)
        ready = min(found)[1] if found else len(self.held) - self._num_kept()
        text, self.held = self.held[:ready], "" if found else self.held[ready:]
        return text

    def _num_kept(self) -> int:
        """Characters at the end of `held` that some stop begins with."""
        lengths = [
            next((n for n in range(min(len(stop) - 1, len(self.held)), 0, -1) if self.held.endswith(stop[:n])), 0)
            for stop in self.stops
        ]
        return max(lengths, default=0)

    def finish(self) -> str:
        """The text ended: what was kept back was no stop."""
        ready, self.held = ("" if self.is_over else self.held), ""
        return ready
