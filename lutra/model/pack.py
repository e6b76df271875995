"""From any model to a packed file: read, tile, write."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from lutra.errors import RequestError
from lutra.files import open_model
from lutra.files.packed import SUFFIX
from lutra.kernels.stored import EXTENTS
from lutra.model import packed
from lutra.model.config import config_from
from lutra.model.load import Progress, find_head, load_weights
from lutra.model.tokenizer import Tokenizer, to_stored

AUTO = "auto"  # the order that kernels/choose.py picks for each weight
ORDERS = (AUTO, *(order for order in EXTENTS if order not in ("dense", "vector")))  # vectors are in theirs, or in mad


def pack(source: str | Path, target: str | Path, order: str, progress: Progress, head: str | None = None) -> str:
    """Write a model as one file that loads in place; return what was written, in words.

    order    of ORDERS; weights whose format it does not take get their usual one
    head     format to round the head to, None for as stored
    raises   FormatError    a head there is not
             RequestError   an order there is not, a target without the suffix, a source that is packed already
             FileError      the source is no model lutra runs, or the target cannot be written
    """
    target = Path(target).expanduser()
    if order not in ORDERS:
        raise RequestError(f"expected an order of {', '.join(ORDERS)}, got {order!r}; leave --order out")
    if target.suffix != SUFFIX:
        raise RequestError(f"expected a file name that ends in {SUFFIX}, got {target.name!r}; add the ending")
    file = open_model(source)
    if file.kind == "packed":
        raise RequestError(f"expected a model to pack, got {source}, which is packed; copy it, or give its source")
    config = config_from(file)
    tokenizer = to_stored(file, Tokenizer.from_file(file))
    weights = load_weights(file, config, progress, None if order == AUTO else order, find_head(file, head))
    factors = np.asarray(file.tensors[packed.ROPE].read()) if packed.ROPE in file.tensors else None
    packed.write(target, config, tokenizer, weights, factors, progress)
    counts = Counter(linear.weight.order for _, linear in packed.linears(weights))
    orders = ", ".join(f"{count} weights in {name} order" for name, count in counts.items())
    return f"{target}: {target.stat().st_size / 1e6:.1f} MB, {orders}"
