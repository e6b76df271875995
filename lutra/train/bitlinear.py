"""BitLinear: a drop-in for `nn.Linear` that computes with ternary weights and int8 activations.

The master weight stays float.  Every forward pass rounds it to {-1, 0, +1} times one scale, rounds the activations
to int8 with one scale per token, and multiplies integers; the backward pass pretends that neither rounding happened
(the straight-through estimator).

Sources   BitNet b1.58, arXiv 2402.17764, section 2: absmean weights, absmax activations
          BitNet b1.58 2B4T, arXiv 2504.12285, section 2: where the layer is used
"""

from __future__ import annotations

import torch
from torch import nn

SMALLEST_SCALE = 1e-5  # keeps an all-zero tensor or token from dividing by zero
INT8_MAX = 127.0


def ternarize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to ternary codes and one scale.

    weight   float [N, K]
    returns  codes f32 [N, K] in {-1, 0, 1}; scale f32 [] = mean|weight|, at least 1e-5
    """
    weight = weight.float()
    scale = weight.abs().mean().clamp(min=SMALLEST_SCALE)
    return (weight / scale).round().clamp(-1, 1), scale


def quantize_activations(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round activations to int8 values, one scale per token.

    x        float [..., K]
    returns  values f32 [..., K], integers in -127 .. 127; scales f32 [..., 1], x is about values * scales
    """
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_SCALE)
    return (x * (INT8_MAX / largest)).round(), largest / INT8_MAX


class _IntegerLinear(torch.autograd.Function):
    """x @ concatenated(weights).T in quantised numbers; gradients as if the quantised values had been given."""

    @staticmethod
    def forward(ctx, x, *weights):  # type: ignore[no-untyped-def, override]
        # Integers up to 127 and ternary codes are exact in bfloat16, so a bf16 product loses nothing before the sum.
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else torch.float32
        ternary = [ternarize(weight) for weight in weights]
        codes = torch.cat([codes for codes, _ in ternary]).to(dtype)  # [N, K]
        row_scales = torch.cat([scale.expand(len(codes)) for codes, scale in ternary]).to(dtype)  # [N]
        values, scales = quantize_activations(x)
        values, scales = values.to(dtype), scales.to(dtype)
        ctx.save_for_backward(values, scales, codes, row_scales)
        ctx.x_dtype, ctx.rows = x.dtype, [len(weight) for weight in weights]
        return torch.nn.functional.linear(values, codes) * scales * row_scales

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def, override]
        values, scales, codes, row_scales = ctx.saved_tensors
        grad = grad.to(values.dtype)
        grad_x = ((grad * row_scales) @ codes).to(ctx.x_dtype)
        scaled = (grad * scales).reshape(-1, grad.shape[-1])  # [tokens, N]
        grad_weight = (scaled.T @ values.reshape(-1, values.shape[-1])).float()
        return grad_x, *grad_weight.split(ctx.rows)


class BitLinear(nn.Linear):
    """`nn.Linear` with ternary weights and int8 activations in the forward pass (b1.58).

    x        float [..., in_features]
    returns  float [..., out_features]; bfloat16 under autocast, else float32
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _IntegerLinear.apply(x, self.weight)
        return y if self.bias is None else y + self.bias


def share_input(x: torch.Tensor, *layers: BitLinear) -> tuple[torch.Tensor, ...]:
    """Apply several bias-free BitLinears to one x: what each returns alone, with x quantised once."""
    y = _IntegerLinear.apply(x, *(layer.weight for layer in layers))
    return y.split([layer.out_features for layer in layers], -1)
