"""Writers of quantised linears as their methods lay them out, from the descriptions.  No code of the readers.

Each takes codes [N, K], scales [N, G] and what else the method has, and returns the tensors behind the linear's name.
"""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np

AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds this output of its eight


def stream(rows: np.ndarray, bits: int) -> np.ndarray:
    """Write every row as one number, low code first, in 32-bit words: int32 [R, words]."""
    words = -(-rows.shape[1] * bits // 32)
    result = np.empty((len(rows), words), np.uint32)
    for r, row in enumerate(rows):
        number = sum(int(code) << bits * i for i, code in enumerate(row))
        result[r] = [number >> 32 * w & 0xFFFFFFFF for w in range(words)]
    return result.view(np.int32)


def whole(rows: np.ndarray, bits: int) -> np.ndarray:
    """32 // bits codes to a word, the bits left over empty."""
    per_word = 32 // bits
    words = -(-rows.shape[1] // per_word)
    result = np.zeros((len(rows), words), np.uint32)
    for r, row in enumerate(rows):
        for i, code in enumerate(row):
            result[r, i // per_word] |= np.uint32(int(code) << bits * (i % per_word))
    return result.view(np.int32)


def gptq(codes, scales, zeros, bits, *, version=1, g_idx=None, pack=stream):
    """AutoGPTQ: codes along K, zeros along N, both transposed; version 1 stores zero - 1 in its field."""
    stored = (zeros.astype(int) - (1 if version == 1 else 0)) % 2**bits
    tensors = {"qweight": pack(codes, bits).T, "qzeros": pack(stored.T, bits), "scales": scales.T.astype(np.float16)}
    return tensors if g_idx is None else tensors | {"g_idx": g_idx.astype(np.int32)}


def awq_gemm(codes, scales, zeros):
    """[K, N / 8]: eight outputs to a word, interleaved."""

    def words(matrix):  # [R, N]
        result = np.zeros((matrix.shape[0], matrix.shape[1] // 8), np.uint32)
        for c in range(result.shape[1]):
            for nibble, output in enumerate(AWQ_OUTPUTS):
                result[:, c] |= matrix[:, 8 * c + output].astype(np.uint32) << np.uint32(4 * nibble)
        return result.view(np.int32)

    return {"qweight": words(codes.T), "qzeros": words(zeros.T), "scales": scales.T.astype(np.float16)}


def awq_gemv(codes, scales, zeros):
    """[N, K / 8] in order; zeros and scales padded to whole words."""
    words = -(-zeros.shape[1] // 8)
    padded = np.zeros((len(zeros), 8 * words))
    padded[:, : zeros.shape[1]] = zeros
    wide = np.zeros((len(scales), 8 * words), np.float16)
    wide[:, : scales.shape[1]] = scales
    return {"qweight": whole(codes, 4), "qzeros": whole(padded.astype(np.uint8), 4), "scales": wide}


def pack_quantized(codes, scales, bits, *, zeros=None, g_idx=None):
    """compressed-tensors: codes already hold the offset; zeros are packed along N."""
    tensors = {"weight_packed": stream(codes, bits), "weight_scale": scales,
               "weight_shape": np.array(codes.shape, np.int64)}  # fmt: skip
    if zeros is not None:
        tensors["weight_zero_point"] = stream(zeros.T, bits).T
    return tensors if g_idx is None else tensors | {"weight_g_idx": g_idx.astype(np.int32)}


def pairs(codes, *, high_first=False):
    """Two codes of 4 bits to a byte."""
    first, second = codes[:, 0::2], codes[:, 1::2]
    return (first << 4 | second if high_first else second << 4 | first).astype(np.uint8)


def bitsandbytes(codes, absmax, levels, kind, *, nested=None):
    """absmax f32 [N, K / 64], or with nested = (codes u8, map f32 [256], outer f32, offset) its second quantisation."""
    n, k = codes.shape
    state = {"quant_type": kind, "blocksize": k // absmax.shape[1], "dtype": "float16", "shape": [n, k]}
    tensors = {"weight": pairs(codes, high_first=True).reshape(-1, 1), "weight.absmax": absmax.reshape(-1)}
    if nested is not None:
        inner, table, outer, offset = nested
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        tensors |= {"weight.absmax": inner, "weight.nested_absmax": outer, "weight.nested_quant_map": table}
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return tensors | {"weight.quant_map": levels, f"weight.quant_state.bitsandbytes__{kind}": text}


def hqq(codes, scales, zeros, bits):
    """Groups as rows; slices of the rows side by side in a byte, the first highest (3 bits: ten in int32)."""
    n, k = codes.shape
    groups = codes.reshape(-1, k // scales.shape[1])
    per = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}[bits]
    rows = -(-len(groups) // per)
    padded = np.zeros((per * rows, groups.shape[1]), np.int64)
    padded[: len(groups)] = groups
    packed = sum(padded[i * rows : (i + 1) * rows] << bits * (per - 1 - i) for i in range(per))
    column = {"scale": scales.reshape(-1, 1), "zero": zeros.reshape(-1, 1), "shape": np.array([n, k])}
    return {"W_q": packed.astype(np.int32 if bits == 3 else np.uint8)} | column


def e4m3(values):
    return values.astype(ml_dtypes.float8_e4m3fn)


def vptq(indices, books, *, residual=None, res_books=None, perm=None, scale=None, bias=None):
    """Indices [books, N / v, K / books], books [books, centroids, v]; the residual's index lies above the main one."""
    bits = int(np.ceil(np.log2(books.shape[1])))
    codes, width = indices.astype(object), bits
    tensors = {"centroids.weight": books.reshape(len(books), -1)}
    if residual is not None:
        codes = codes + residual.astype(object) * 2**bits
        width += int(np.ceil(np.log2(res_books.shape[1])))
        tensors["res_centroids.weight"] = res_books.reshape(len(books), -1)
    tensors["indices"] = np.stack([stream(book, width) for book in codes])
    if perm is not None:
        tensors["perm"] = perm.astype(np.uint16).view(np.int16)
    named = {"weight_scale": scale, "weight_bias": bias}
    return tensors | {name: values for name, values in named.items() if values is not None}
