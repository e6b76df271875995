"""`python -m lutra.train`: train a small decoder, ternary or float, then export it.

Example
    python -m lutra.train --corpus english_novels --stories tinystories --out run --minutes 100 --export model
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from pathlib import Path

from lutra.errors import LutraError, RequestError

TOKENS_PER_STEP = 4096
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("lutra train", description="Train a small decoder in PyTorch, ternary or float.")
    p.add_argument("--corpus", type=Path, required=True, help="folder of novels, one Author_Title_Year.txt each")
    p.add_argument("--stories", type=Path, required=True, help="file or folder of short stories")
    p.add_argument("--out", type=Path, required=True, help="folder for tokenizer, checkpoint and log")
    p.add_argument("--export", type=Path, help="write the finished model to this folder")
    p.add_argument("--minutes", type=float, default=100, help="active time to train (default 100)")
    p.add_argument("--until", help="stop at this time of day, HH:MM in UTC, if that comes first")
    p.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    p.add_argument("--peak-rate", type=float, default=2e-3, help="highest learning rate (default 0.002)")
    p.add_argument("--story-share", type=float, nargs=2, default=(0.15, 0.35), metavar=("FIRST", "LAST"),
                   help="share of stories in the mixture at the start and at the end (default 0.15 0.35)")
    p.add_argument("--weights", choices=("ternary", "float"), default="ternary",
                   help="ternary: BitNet b1.58; float: a Llama, to quantise afterwards (default ternary)")
    p.add_argument("--hidden-size", type=int, default=256, help="a multiple of 128 (default 256)")
    p.add_argument("--ffn-size", type=int, default=768, help="a multiple of 64 (default 768)")
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--length", type=int, default=512, help="tokens per window (default 512)")
    p.add_argument("--threads", type=int, default=2)
    return p


def settle_process() -> None:
    """Make this process fit for training on a busy CPU; call it before torch is imported.

    Waiting OpenMP threads give the core up: beside other programs, spinning made a step 2.5 times slower.  Freed memory
    stays in the process (glibc only): handing tensors back and faulting them in again took a fifth of the time.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def check(args: argparse.Namespace) -> None:
    """Raise RequestError for a number that no run can have."""
    rules = [
        ("--length", args.length, 2 <= args.length <= TOKENS_PER_STEP, f"2 to {TOKENS_PER_STEP} tokens"),
        ("--minutes", args.minutes, 0 < args.minutes < float("inf"), "more than 0 minutes"),
        ("--threads", args.threads, 1 <= args.threads <= 1024, "1 to 1024 threads"),
        ("--hidden-size", args.hidden_size, args.hidden_size > 0 and args.hidden_size % 128 == 0, "a multiple of 128"),
        ("--ffn-size", args.ffn_size, args.ffn_size > 0 and args.ffn_size % 64 == 0, "a multiple of 64"),
        ("--layers", args.layers, 1 <= args.layers <= 256, "1 to 256 layers"),
        ("--story-share", args.story_share, all(0 <= share <= 1 for share in args.story_share), "shares of 0 to 1"),
    ]
    for option, got, fits, wanted in rules:
        if not fits:
            raise RequestError(f"expected {option} of {wanted}, got {got}; leave it out for the default")


def run(args: argparse.Namespace) -> None:
    # torch is imported only once the arguments are known to be right
    from lutra.train.export import export
    from lutra.train.loop import train
    from lutra.train.model import DecoderConfig
    from lutra.train.run import RunConfig
    from lutra.train.schedule import Budget, Schedule, parse_until

    budget = Budget(minutes=args.minutes, until=parse_until(args.until) if args.until else None)
    schedule = Schedule(peak_rate=args.peak_rate, story_share=tuple(args.story_share))
    heads = args.hidden_size // DecoderConfig.head_dim
    model = DecoderConfig(hidden_size=args.hidden_size, ffn_size=args.ffn_size, num_layers=args.layers, num_heads=heads,
                          num_kv_heads=heads // 2, max_context=max(args.length, 512), weights=args.weights)
    config = RunConfig(model=model, schedule=schedule, length=args.length, batch_size=TOKENS_PER_STEP // args.length,
                       threads=args.threads)
    train(args.corpus, args.stories, args.out, budget, config, args.resume,
          report=lambda line: print(line, flush=True))
    if args.export:
        export(args.out, args.export)
        print(f"wrote {args.export}")


def main() -> int:
    try:
        args = parser().parse_args()
        check(args)
        settle_process()
        run(args)
    except LutraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first step; later the run ends with its checkpoint
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
