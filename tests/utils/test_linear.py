"""Linear layers by kernels: what torch gives, in values and gradients, and torch itself wherever they do not pay."""

import pytest
import torch
import torch.nn.functional as F

from utils import linear as module
from utils import native
from utils.linear import Linear, gradients, linear, multiply, pays

ROWS = 3001  # enough for every shape here, and no multiple of what kernels do at a time
SHAPES = [(23, 64), (64, 23), (64, 192), (700, 8), (8, 700), (78, 83)]
CLOSE = {"rtol": 1e-4, "atol": 1e-3}


@pytest.fixture(autouse=True)
def on_such_a_processor(monkeypatch):
    """Kernels compute on any processor; elsewhere they are only not the faster ones."""
    if not native.is_there():
        pytest.skip("no kernels here")
    monkeypatch.setattr(module, "_is_handicapped", lambda: True)


def test_by_hand():
    """(1, 2) and (0, -1) times [[3, 4], [5, 6], [7, 8]]^T, plus (10, 20, 30)."""
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    weight = torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    found = multiply(x, weight, torch.tensor([10.0, 20.0, 30.0]))
    assert found.tolist() == [[21.0, 37.0, 53.0], [6.0, 14.0, 22.0]]


def test_gradients_by_hand():
    """x = (1, 2), (3, 4) and a gradient of (1, 0, -1), (2, 1, 0): 2 * 3 + 1 * 1 = 7 is the first weight's."""
    grad, x = torch.tensor([[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    d_weight, d_bias = torch.empty(3, 2), torch.empty(3)
    native.call("linear_gradients", grad, x, 2, 3, 2, 1, d_weight, d_bias)
    assert d_weight.tolist() == [[7.0, 10.0], [3.0, 4.0], [-1.0, -2.0]]
    assert d_bias.tolist() == [3.0, 1.0, -1.0]


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("shape", [(ROWS,), (5, ROWS // 5)])
def test_values_and_gradients_are_torchs(inputs, outputs, shape, monkeypatch):
    monkeypatch.setattr(module, "LEAST_PRODUCTS", 0)
    torch.manual_seed(inputs)
    x = torch.randn(*shape, inputs, requires_grad=True)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    bias = torch.randn(outputs, requires_grad=True)
    assert pays(x, weight)
    y, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert type(y.grad_fn) is not type(expected.grad_fn)
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(multiply(x.detach(), weight.detach()), expected - bias, **CLOSE)
    direction = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(out, (x, weight, bias), direction) for out in (y, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 63, 64, 65, 130])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 48, 65, 80, 97, 128])
def test_every_remainder(rows, columns, monkeypatch):
    """Whatever is left when kernels have done as many rows and columns as they do at a time."""
    monkeypatch.setattr(module, "LEAST_PRODUCTS", 0)
    torch.manual_seed(rows)
    x, weight, grad = torch.randn(rows, 3), torch.randn(columns, 3), torch.randn(rows, columns)
    torch.testing.assert_close(multiply(x, weight), x @ weight.t(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(multiply(grad, weight.t()), grad @ weight, rtol=1e-4, atol=1e-4)
    for found, expected in zip(gradients(grad, x), (grad.t() @ x, grad.sum(dim=0)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients(x, grad)[0], x.t() @ grad, rtol=1e-4, atol=1e-4)


def test_views_with_gaps_are_read_right():
    x, weight = torch.randn(ROWS, 100)[:, 10:74], torch.randn(64, 90)[:, :64]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)
    y = torch.randn(ROWS, 80)[:, ::2]
    torch.testing.assert_close(gradients(y, x)[0], y.t() @ x, rtol=1e-4, atol=1e-3)


def test_without_a_bias():
    layer, x = Linear(64, 64, bias=False), torch.randn(ROWS, 64)
    assert pays(x, layer.weight)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(dim=0).expand(64, -1), rtol=1e-4, atol=1e-3)


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
    assert not pays(x.double(), layer.weight.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pays(x, layer.weight)
        assert layer(x).dtype == torch.bfloat16
    mapped = torch.func.vmap(layer)(x.expand(3, -1, -1))
    torch.testing.assert_close(mapped[1], layer(x), rtol=1e-5, atol=1e-5)
