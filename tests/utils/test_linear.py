"""Linear layers by oneDNN: what torch's own give, in values and gradients, and torch's own wherever it does not pay."""

import pytest
import torch
import torch.nn.functional as F

from utils import linear as module
from utils.linear import Linear, linear, multiply_columns, pays

ROWS = 3000  # enough for every shape here
SHAPES = [(23, 64), (64, 23), (64, 192), (700, 8), (8, 700)]


@pytest.fixture(autouse=True)
def on_such_a_processor(monkeypatch):
    """oneDNN's product is there on any processor that torch supports; elsewhere it is only not the faster one."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "_is_handicapped", lambda: True)


def test_by_hand():
    """(1, 2) and (0, -1) times [[3, 4], [5, 6], [7, 8]]^T, plus (10, 20, 30)."""
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    weight = torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    found = module.multiply(x, weight, torch.tensor([10.0, 20.0, 30.0]))
    assert found.tolist() == [[21.0, 37.0, 53.0], [6.0, 14.0, 22.0]]


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("shape", [(ROWS,), (5, ROWS // 5)])
def test_values_and_gradients_are_torchs(inputs, outputs, shape):
    torch.manual_seed(inputs)
    x = torch.randn(*shape, inputs, requires_grad=True)
    weight, bias = torch.randn(outputs, inputs, requires_grad=True), torch.randn(outputs, requires_grad=True)
    assert pays(x, weight)
    y, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert type(y.grad_fn) is not type(expected.grad_fn)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    direction = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(out, (x, weight, bias), direction) for out in (y, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_views_with_gaps_are_read_right():
    x, weight = torch.randn(ROWS, 100)[:, 10:74], torch.randn(64, 90)[:, :64]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)
    y = torch.randn(ROWS, 80)[:, ::2]
    torch.testing.assert_close(multiply_columns(y, x), y.t() @ x, rtol=1e-4, atol=1e-3)


def test_gradients_of_what_needs_one_alone():
    layer, x = Linear(64, 64), torch.randn(ROWS, 64)
    layer(x).sum().backward()
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    x.requires_grad_(True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand_as(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert layer(x).grad_fn is None


def test_elsewhere_it_is_torchs_own():
    layer, x = Linear(64, 64), torch.randn(ROWS, 64)
    assert pays(x, layer.weight)
    assert not pays(x[:100], layer.weight)
    assert not pays(x.double(), layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pays(x, layer.weight)
        assert layer(x).dtype == torch.bfloat16
    mapped = torch.func.vmap(layer)(x.expand(3, -1, -1))
    torch.testing.assert_close(mapped[1], layer(x), rtol=1e-5, atol=1e-5)
