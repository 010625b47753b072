"""The small parts against what they say they are."""

import pytest
import torch
from torch.nn import functional

from titans_ts.core.layers import CausalConv, RMSNorm, SwiGLU, rotate
from titans_ts.core.networks import EPSILON, gelu_slope, layer_shapes, normalize, recall, stiffness


def test_the_root_mean_square_after_the_norm_is_its_scale():
    norm, x = RMSNorm(16), 5 * torch.randn(3, 7, 16)
    norm.scale.data.fill_(2.0)
    assert norm(x).square().mean(-1).sqrt().flatten().tolist() == pytest.approx([2.0] * 21, rel=1e-4)
    assert torch.equal(norm(torch.zeros(1, 16)), torch.zeros(1, 16))


def test_the_gated_feed_forward_layer_is_its_formula():
    layer, x = SwiGLU(4, 6), torch.randn(2, 4)
    up, down = layer.up.weight, layer.down.weight
    expected = (functional.silu(x @ up[:6].T) * (x @ up[6:].T)) @ down.T
    torch.testing.assert_close(layer(x), expected)


def test_the_convolution_is_its_sum_over_the_last_taps():
    conv, x = CausalConv(3, 4), torch.randn(2, 9, 3)
    y, recent = conv(x, conv.blank(2, x))
    for t in range(9):
        expected = sum(x[:, t - back] * conv.weight[:, 0, 3 - back] for back in range(4) if t >= back)
        torch.testing.assert_close(y[:, t], expected)
    assert torch.equal(recent, x[:, -3:])


def test_one_tap_carries_nothing():
    conv, x = CausalConv(3, 1), torch.randn(2, 5, 3)
    y, recent = conv(x, conv.blank(2, x))
    assert recent.shape == (2, 0, 3)
    torch.testing.assert_close(y, x * conv.weight[:, 0, 0])


def test_a_rotation_keeps_lengths_and_makes_products_depend_on_the_distance_only():
    q, k = torch.randn(1, 1, 1, 10, dtype=torch.float64), torch.randn(1, 1, 1, 10, dtype=torch.float64)

    def product(i: int, j: int) -> float:
        rotated = (rotate(x, torch.tensor([[at]])) for x, at in ((q, i), (k, j)))
        return (next(rotated) * next(rotated)).sum().item()

    assert product(17, 5) == pytest.approx(product(12, 0), rel=1e-9)
    assert product(17, 5) != pytest.approx(product(13, 0), rel=1e-3)
    far = rotate(q, torch.tensor([[10_000_019]]))
    assert far.norm().item() == pytest.approx(q.norm().item())
    assert product(10_000_019, 10_000_007) == pytest.approx(product(12, 0), rel=1e-6)


def test_an_odd_width_leaves_its_last_feature_unrotated():
    x = torch.randn(1, 1, 1, 5)
    assert rotate(x, torch.tensor([[9]]))[..., 4] == x[..., 4]


def test_layer_shapes_chain_from_head_to_head():
    assert layer_shapes(8, 1, 4) == [(8, 8)]
    assert layer_shapes(8, 4, 2) == [(8, 16), (16, 16), (16, 16), (16, 8)]


def test_the_slope_is_the_derivative_of_the_exact_gelu():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(functional.gelu(x).sum(), x)
    torch.testing.assert_close(gelu_slope(x.detach()), slope)


def test_the_norm_without_parameters_is_that_of_torch():
    z = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(normalize(z)[0], functional.layer_norm(z, (8,), eps=EPSILON))
    assert normalize(torch.zeros(1, 4))[0].tolist() == [[0.0] * 4]


def test_recall_is_the_network_it_says():
    first, second = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 6, 4)
    q = torch.randn(2, 3, 5, 4)
    plain = functional.gelu(q @ first) @ second
    torch.testing.assert_close(recall((first, second), q), plain)
    torch.testing.assert_close(
        recall((first, second), q, residual=True), q + functional.layer_norm(plain, (4,), eps=EPSILON)
    )


def test_stiffness_is_a_quotient_of_at_least_one():
    assert stiffness(torch.tensor([0.0, 3.0, 12.0]), torch.tensor([0.0, 6.0, 4.0])).tolist() == pytest.approx([1, 1, 3])
