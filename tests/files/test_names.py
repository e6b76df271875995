import numpy as np
import pytest

from lutra.files.names import GGUF, HUGGING_FACE, half_rotation_rows, rotated_part
from tests.files.make_models import interleave


@pytest.mark.parametrize(
    ("naming", "stored", "ours"),
    [
        (GGUF, "token_embd.weight", "embed"),
        (GGUF, "output.weight", "head"),
        (GGUF, "blk.0.attn_q.weight", "layers.0.q"),
        (GGUF, "blk.12.attn_q.bias", "layers.12.q.bias"),
        (GGUF, "blk.3.attn_sub_norm.weight", "layers.3.attn_sub_norm"),
        (GGUF, "blk.3.ffn_down.weight", "layers.3.down"),
        (HUGGING_FACE, "model.norm.weight", "final_norm"),
        (HUGGING_FACE, "model.layers.7.self_attn.k_norm.weight", "layers.7.k_norm"),
        (HUGGING_FACE, "model.layers.7.mlp.ffn_sub_norm.weight", "layers.7.ffn_sub_norm"),
        (HUGGING_FACE, "model.layers.7.mlp.ffn_layernorm.weight", "layers.7.ffn_sub_norm"),
        (HUGGING_FACE, "model.layers.7.self_attn.inner_attn_ln.weight", "layers.7.attn_sub_norm"),
        (HUGGING_FACE, "model.layers.7.post_attention_layernorm.weight", "layers.7.ffn_norm"),
    ],
)
def test_both_worlds_meet(naming, stored, ours):
    assert naming.canonical(stored) == ours


@pytest.mark.parametrize(
    "stored",
    ["blk.0.attn_qkv.weight", "blk.00.attn_q.weight", "blk.٣.attn_q.weight", "blk.0.attn_norm.bias",
     "blk.0.attn_q.scale", "token_embd.weight\n", "blk.-1.attn_q.weight", "blk.99999.attn_q.weight", ""],
)  # fmt: skip
def test_other_names_are_unknown(stored):
    assert GGUF.canonical(stored) is None


def test_half_rotation_by_hand():
    # one head of 4 stored as pairs (a0, b0), (a1, b1); half rotation wants a0 a1 b0 b1
    assert half_rotation_rows(4, 1).tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize(("rows", "heads"), [(2, 1), (64, 4), (24, 2), (100, 1)])
def test_half_rotation_undoes_the_converter(rows, heads):
    original = np.arange(rows * 3).reshape(rows, 3)
    assert np.array_equal(interleave(original, heads)[half_rotation_rows(rows, heads)], original)


def test_rotated_parts():
    assert [rotated_part(f"layers.0.{part}") for part in ("q", "k.bias", "v", "q_norm")] == ["q", "k", None, None]
