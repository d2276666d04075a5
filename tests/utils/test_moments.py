"""Running moments: they are those of everything seen, in whatever portions it came."""

import pytest
import torch

from utils.moments import deviation, update_moments


def test_by_hand():
    first = update_moments(None, torch.tensor([1.0, 3.0, 99.0]), torch.tensor([1, 1, 0]))
    assert first.tolist() == [2.0, 2.0, 2.0]
    assert update_moments(first, torch.tensor([5.0]), torch.tensor([1])).tolist() == [3.0, 3.0, 8.0]
    assert first.tolist() == [2.0, 2.0, 2.0]  # the old ones are not written to
    assert deviation(first).item() == 1.0


@pytest.mark.parametrize("portions", [(300,), (1, 299), (0, 100, 150, 50)])
def test_portions_do_not_matter(portions):
    values = 7 + 3 * torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moments = None
    for part in values.split(portions):
        moments = update_moments(moments, part, torch.ones_like(part))
    assert moments[0] == 300
    assert moments[1].item() == pytest.approx(values.mean().item(), rel=1e-12)
    assert deviation(moments).item() == pytest.approx(values.std(correction=0).item(), rel=1e-12)


def test_nothing_seen_has_no_deviation():
    nothing = update_moments(None, torch.ones(3), torch.zeros(3))
    assert deviation(nothing) == 0
    assert torch.isfinite(nothing).all()
