"""Shape checks, and means over played steps."""

import pytest
import torch

from utils.shapes import check_same_shape, check_shape, masked_mean, masked_std

NAN, INF = float("nan"), float("inf")


def test_equal_shapes_pass():
    check_same_shape(a=torch.zeros(2, 3), b=torch.ones(2, 3, dtype=torch.long), c=torch.zeros(2, 3))


@pytest.mark.parametrize("other", [(2, 1), (3,), (2, 3, 1), (1, 3), ()])  # all of which torch would broadcast
def test_different_shapes_are_named(other):
    with pytest.raises(ValueError, match="shapes must be equal") as raised:
        check_same_shape(q=torch.zeros(2, 3), target=torch.zeros(other), mask=torch.zeros(2, 3))
    assert str(raised.value) == f"shapes must be equal: q (2, 3), target {other}, mask (2, 3)"


def test_expected_shapes_pass():
    check_shape("q", torch.zeros(2, 3), (2, 3))
    check_shape("q", torch.zeros(2, 3), (None, 3))
    check_shape("q", torch.zeros(()), ())


@pytest.mark.parametrize(
    ("shape", "expected", "wanted"),
    [
        ((2, 3), (2, 4), "2, 4"),
        ((2, 3), (None, 4), "any, 4"),
        ((2, 3), (2, 3, 1), "2, 3, 1"),
        ((2, 3), (2,), "2"),
        ((2,), (None, None), "any, any"),
    ],
)
def test_unexpected_shape_is_named(shape, expected, wanted):
    with pytest.raises(ValueError, match="must have shape") as raised:
        check_shape("q", torch.zeros(shape), expected)
    assert str(raised.value) == f"q must have shape ({wanted}), got {shape}"


def test_masked_mean_by_hand():
    values = torch.tensor([[1.0, 2.0], [6.0, 100.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert masked_mean(values, mask).item() == 3.0  # 9 / 3, not 9 / 4
    assert masked_mean(values, mask.bool()).item() == 3.0
    assert masked_mean(values, torch.ones(2, 2)).item() == 27.25


def test_masked_std_by_hand():
    values = torch.tensor([1.0, 2.0, 6.0, 100.0])
    # mean 3, squares 4 + 1 + 9, over 3
    assert masked_std(values, torch.tensor([1.0, 1.0, 1.0, 0.0])).item() == pytest.approx((14 / 3) ** 0.5)


@pytest.mark.parametrize("wild", [1e6, NAN, INF, -INF])
def test_what_is_masked_has_no_effect(wild):
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    values = torch.tensor([1.0, wild, 4.0, -wild], requires_grad=True)
    mean = masked_mean(values, mask)
    mean.backward()
    assert mean.item() == 2.5
    assert values.grad.tolist() == [0.5, 0.0, 0.5, 0.0]
    assert masked_std(values, mask).item() == 1.5


def test_shape_errors():
    values, mask = torch.zeros(2, 3, 4), torch.ones(2, 3, 1)  # a mean over four agents would be four times too large
    for function in (masked_mean, masked_std):
        with pytest.raises(ValueError, match=r"values \(2, 3, 4\), mask \(2, 3, 1\)"):
            function(values, mask)
