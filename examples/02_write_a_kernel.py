"""Write a kernel, compare it with its definition, and look at what became of it.

python examples/02_write_a_kernel.py
"""

import numpy as np

from lutra.compiler import targets
from lutra.compiler.ir import to_text
from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    absolute,
    const,
    f32,
    i64,
    load,
    loop,
    maximum,
    reduce_max,
    splat,
    store,
    var,
)


@kernel
def scale_rows(x: Pointer[f32], y: Pointer[f32], columns: i64, task: i64, *, lanes):
    """y = x / max|x|, row by row; `lanes` columns at a time, one row a task."""
    start = task * columns
    largest = var(const(1e-9, f32, lanes))
    for i in loop(0, columns, lanes):
        largest.set(maximum(largest.get(), absolute(load(x, start + i, lanes))))
    inverse = splat(1.0 / reduce_max(largest.get()), lanes)
    for i in loop(0, columns, lanes):
        store(y, start + i, load(x, start + i, lanes) * inverse)


ROWS, COLUMNS, LANES = 3, 64, 16
x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
args = {"x": x, "y": np.zeros_like(x), "columns": COLUMNS}

# The language has a meaning in NumPy: `interpret` runs it, where breakpoint() works; `check` compares machine code with
# it, to the last bit, on copies of the arguments.
for target in targets.available():
    scale_rows.check(args, tasks=ROWS, isa=target.isa, lanes=LANES)
scale_rows.run(args, tasks=ROWS, lanes=LANES)
print("largest of each row:", np.abs(args["y"]).max(axis=1))

print()
print(to_text(scale_rows.trace(lanes=LANES)))

for target in targets.available():
    compiled = scale_rows.compile(target.isa, lanes=LANES)
    lines = {stage: len(compiled.text(stage).splitlines()) for stage in ("ir", "llvm", "asm")}
    print(f"{target.isa:10} equals its definition; lines of", ", ".join(f"{s} {n}" for s, n in lines.items()))
