"""BitLinear: hand-computed numbers first, then gradients and the drop-in promise."""

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'lutra[train]'")

from lutra.train.bitlinear import BitLinear, quantize_activations, share_input, ternarize  # noqa: E402


def linear_with(weight: list[list[float]]) -> BitLinear:
    layer = BitLinear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


def test_by_hand() -> None:
    # mean|W| = (3 + 1 + 0.5 + 3.5) / 4 = 2, so the codes are [1, 0], [0, 1]: 1 / 2 rounds half to even.
    layer = linear_with([[3.0, -1.0], [0.5, 3.5]])
    # max|x| = 127, so one step of int8 is 1: 127 stays, 2.4 becomes 2.
    y = layer(torch.tensor([[127.0, 2.4]]))
    assert y.tolist() == [[127.0 * 2, 2.0 * 2]]


def test_ternary_codes_are_clamped() -> None:
    codes, scale = ternarize(torch.tensor([[9.0, -9.0, 0.0, 0.0]]))
    assert codes.tolist() == [[1, -1, 0, 0]] and scale == 4.5


def test_zeros_do_not_divide() -> None:
    codes, scale = ternarize(torch.zeros(2, 3))
    values, scales = quantize_activations(torch.zeros(1, 3))
    assert not codes.any() and not values.any() and scale > 0 and (scales > 0).all()


def test_each_token_has_its_own_scale() -> None:
    x = torch.tensor([[1.0, -0.5], [100.0, 25.0]])
    values, scales = quantize_activations(x)
    assert values.tolist() == [[127, -64], [127, 32]]  # 63.5 and 31.75
    torch.testing.assert_close(values * scales, x, atol=0.5, rtol=0)


def test_gradients_pass_straight_through() -> None:
    layer = linear_with([[3.0, -1.0], [0.5, 3.5]])
    x = torch.tensor([[127.0, 2.4]], requires_grad=True)
    layer(x).backward(torch.tensor([[1.0, 10.0]]))
    # As if y = x_q @ W_q.T with x_q = [127, 2] and W_q = [[2, 0], [0, 2]], and no rounding in between.
    assert x.grad.tolist() == [[2.0, 20.0]]
    assert layer.weight.grad.tolist() == [[127.0, 2.0], [1270.0, 20.0]]


def test_sharing_an_input_changes_nothing() -> None:
    torch.manual_seed(0)
    layers = [BitLinear(16, n, bias=False) for n in (8, 4, 12)]
    x = torch.randn(3, 16)
    for shared, layer in zip(share_input(x, *layers), layers, strict=True):
        torch.testing.assert_close(shared, layer(x))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_takes_the_shapes_of_linear(shape: tuple[int, ...]) -> None:
    layer = BitLinear(5, 4)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (*shape[:-1], 4) and x.grad.shape == x.shape
    assert layer.weight.grad.shape == layer.weight.shape and layer.bias.grad is not None


def test_bfloat16_agrees_with_float32() -> None:
    torch.manual_seed(0)
    layer, x = BitLinear(64, 32, bias=False), torch.randn(7, 64)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=1e-3)
