"""`python -m lutra.train`: train the small ternary decoder, then export it.

Example
    python -m lutra.train --corpus english_novels --stories tinystories --out run --minutes 100
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lutra.errors import LutraError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m lutra.train", description="Train a small ternary decoder.")
    p.add_argument("--corpus", type=Path, required=True, help="folder of novels, one Author_Title_Year.txt each")
    p.add_argument("--stories", type=Path, required=True, help="file or folder of short stories")
    p.add_argument("--out", type=Path, required=True, help="folder for tokenizer, checkpoint and log")
    p.add_argument("--minutes", type=float, default=100, help="active time to train (default 100)")
    p.add_argument("--until", help="stop at this time of day, HH:MM in UTC, if that comes first")
    p.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    p.add_argument("--threads", type=int, default=2)
    return p


def main() -> int:
    args = parser().parse_args()
    from lutra.train import loop  # torch is imported only once the arguments are known to be right

    try:
        until = loop.parse_until(args.until) if args.until else None
        loop.train(args.corpus, args.stories, args.out, loop.Budget(minutes=args.minutes, until=until),
                   loop.TrainConfig(threads=args.threads), resume=args.resume,
                   report=lambda line: print(line, flush=True))
    except LutraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
