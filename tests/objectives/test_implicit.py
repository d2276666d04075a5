"""ICQ's weights by hand and in loops."""

import math

import pytest
import torch

from objectives.implicit import batch_weights


def test_batch_weights_by_hand():
    """Step 0: values 0 and log 3 at temperature 1, so 1/4 and 3/4 of two; step 1: one episode alone; step 2: none."""
    values = torch.tensor([[0.0, 5.0, 7.0], [math.log(3), -9.0, 7.0]]).unsqueeze(-1)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).unsqueeze(-1)
    expected = torch.tensor([[0.5, 1.0, 0.0], [1.5, 0.0, 0.0]]).unsqueeze(-1)
    torch.testing.assert_close(batch_weights(values, mask, 1.0), expected)
    torch.testing.assert_close(batch_weights(2 * values, mask, 2.0), expected)
    torch.testing.assert_close(batch_weights(values, mask, 1e9), mask)
    torch.testing.assert_close(batch_weights(values, mask, 1e-3)[:, 0, 0], torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_batch_weights_in_loops(temperature):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(4, 5, 3, generator=generator) < 0.6).double()
    found = batch_weights(values, mask, temperature)
    assert not found.requires_grad
    for t in range(5):
        for x in range(3):
            rows = [b for b in range(4) if mask[b, t, x]]
            partition = sum(math.exp(values[b, t, x] / temperature) for b in rows)
            for b in range(4):
                share = math.exp(values[b, t, x] / temperature) / partition if b in rows else 0.0
                assert found[b, t, x].item() == pytest.approx(share * len(rows))


@pytest.mark.parametrize("wild", [1e30, -1e30, float("nan"), float("inf")])
def test_padding_changes_nothing(wild):
    values, mask = torch.randn(3, 4, 2), torch.ones(3, 4, 2)
    mask[1, 2:], mask[:, 3] = 0, 0
    expected = batch_weights(values, mask, 0.5)
    assert torch.equal(batch_weights(torch.where(mask == 0, wild, values), mask, 0.5), expected)
    assert torch.isfinite(expected).all()


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="shapes must be equal"):
        batch_weights(torch.zeros(2, 3, 1), torch.zeros(2, 3, 2), 1.0)
