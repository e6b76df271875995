"""What LUTRA_DEBUG asks to see.

LUTRA_DEBUG=ir,asm:matmul_lut    words joined by commas; `word:name` keeps to one kernel, and * stands for any letters
"""

import os
from fnmatch import fnmatchcase
from functools import lru_cache

from lutra.errors import LutraError

WORDS = {
    "ir": "the traced kernel, before LLVM",
    "llvm": "the LLVM text of a kernel, after optimisation",
    "asm": "the machine code of a kernel, as assembly",
    "time": "one line per launch: tasks, microseconds, GB/s",
    "sched": "what each step of the engine runs",
    "interpret": "run kernels in NumPy, where breakpoint() works",
}


def enabled(word: str, name: str | None = None) -> bool:
    """Tell whether LUTRA_DEBUG asks for `word`, for the kernel `name` if one is given.

    Without a name, `word:some_kernel` counts too: something of that word is wanted.
    Raises LutraError when the variable holds a word that is not in WORDS.
    """
    assert word in WORDS, word
    patterns = parse(os.environ.get("LUTRA_DEBUG", "")).get(word, ())
    return any(name is None or fnmatchcase(name, pattern) for pattern in patterns)


@lru_cache
def parse(text: str) -> dict[str, tuple[str, ...]]:
    """Read "ir,asm:matmul_lut" as {"ir": ("*",), "asm": ("matmul_lut",)}."""
    patterns: dict[str, tuple[str, ...]] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        word, _, pattern = item.partition(":")
        if word not in WORDS:
            raise LutraError(
                f"LUTRA_DEBUG: expected words of {', '.join(WORDS)}, got '{word}'; "
                "write them with commas, each alone or as word:kernel_name"
            )
        patterns[word] = (*patterns.get(word, ()), pattern or "*")
    return patterns
