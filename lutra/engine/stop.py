"""Holding back text that may turn out to be a stop text."""

from __future__ import annotations


class StopText:
    """Passes text on until one of `stops` appears; what could still become one is kept back."""

    def __init__(self, stops: tuple[str, ...]):
        self.stops = stops
        self.held = ""
        self.is_over = False

    def push(self, text: str) -> str:
        """Add text; return what is certain not to belong to a stop."""
        if self.is_over:
            return ""
        self.held += text
        found = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if found:
            self.is_over = True
            ready, self.held = self.held[: min(found)], ""
            return ready
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n])), default=0)
        ready, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return ready

    def finish(self) -> str:
        """The text ended: what was kept back was no stop."""
        ready, self.held = ("" if self.is_over else self.held), ""
        return ready
