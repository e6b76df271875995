"""One text in the making: its tokens, and how much of it the KV cache already holds."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field


@dataclass
class Sequence:
    """tokens: prompt and output so far; num_cached: how many of them the KV cache holds, from the start."""

    tokens: list[int] = field(default_factory=list)
    num_cached: int = 0

    def restart(self, prompt: Ids[int], resumable: Callable[[int], int] = int) -> int:
        """Begin a new prompt, keeping what the cache shares with it; return the first position to compute.

        At least the last token is computed again: its logits are needed.

        resumable   the last position up to a given one at which the cache can go on
        """
        shared = 0
        limit = min(self.num_cached, len(prompt) - 1)
        while shared < limit and self.tokens[shared] == prompt[shared]:
            shared += 1
        self.tokens, self.num_cached = list(prompt), resumable(shared)
        return self.num_cached
