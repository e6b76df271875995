"""Round a random matrix to few bits, multiply with the kernels, and see what it costs in accuracy.

Every kernel is compared with the integer specification, bit for bit.

python examples/03_quantise_and_multiply.py
"""

import numpy as np

from lutra.compiler.launch import Program, Workers
from lutra.formats import catalog, integer
from lutra.formats.qtensor import QTensor
from lutra.kernels import activations, choose, norm
from lutra.kernels.buffers import aligned
from lutra.quantize.rounding import round_to_nearest
from lutra.quantize.ternary import absmean

M, N, K = 4, 256, 512
rng = np.random.default_rng(0)
w = (rng.standard_normal((N, K)) / np.sqrt(K)).astype(np.float32)
x = rng.standard_normal((M, K)).astype(np.float32)


def specified(q: QTensor) -> np.ndarray:
    """x @ q.T by the integer specification, in NumPy."""
    return integer.matmul(*integer.quantize_activations(x, q.format.activation_group), q)


def compiled(q: QTensor, order: str) -> np.ndarray:
    """x @ q.T by kernels: quantise the activations, then multiply; two launches, one native call."""
    weight = choose.tile(q, order=order)
    rows, out = aligned((M, K), np.float32), aligned((M, weight.padded_n), np.float32)
    rows[:] = x
    state = aligned(8, np.int64)
    state[0] = M  # how many rows there are
    inputs = activations.allocate(M, K, q.format, with_tables=order == "lut")
    quantise = norm.bind_quantize(rows, inputs, state, width=K)
    multiply = choose.bind(weight, inputs, out, state, epilogue="store", tile_m=choose.tile_m(weight, M))
    Program([quantise, multiply]).run(Workers(2), M)
    return out[:, :N]


print(f"{'format':20} {'bits/weight':>11} {'weight error':>12} {'output error':>12}   exact on")
for name in ("ternary", "planes2-g64-mins", "planes3-g64-mins", "planes4-g32", "int8-g32"):
    q = absmean(w) if name == "ternary" else round_to_nearest(w, catalog.find(name))
    want = specified(q)
    orders = ("mad", "lut") if q.format.storage == "planes" else ("mad",)
    for order in orders:
        assert np.array_equal(compiled(q, order), want), f"{name}, {order}: not the specified bits"
    stored = sum(part.nbytes for part in (q.packed, q.scales, q.zeros, q.mins) if part is not None)
    weight_error = np.linalg.norm(q.dequantize() - w) / np.linalg.norm(w)
    output_error = np.linalg.norm(want - x @ w.T) / np.linalg.norm(x @ w.T)
    print(f"{name:20} {8 * stored / w.size:11.2f} {weight_error:12.2%} {output_error:12.2%}   {', '.join(orders)}")
