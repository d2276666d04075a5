"""QTRAN's conditions by hand and in loops."""

import pytest
import torch

from objectives.qtran import nopt_loss, nopt_min_loss, opt_loss


def column(values):
    return torch.tensor(values).view(1, -1, 1)


def test_the_condition_at_the_best_joint_action_by_hand():
    # 3 - 5 + 1 = -1 and 6 - 1 + 1 = 6 count, the last step was not played: (.5 * 1 + .5 * 36) / 2
    arguments = column([3.0, 6.0, 9.0]), column([5.0, 1.0, 0.0]), column([1.0, 1.0, 0.0])
    assert opt_loss(*arguments, column([1.0, 1.0, 0.0])).item() == pytest.approx(9.25)


def test_the_bound_elsewhere_by_hand():
    # -1 is below the bound, 6 above it: (.5 * 1 + 0) / 2
    arguments = column([3.0, 6.0, 9.0]), column([5.0, 1.0, 0.0]), column([1.0, 1.0, 0.0])
    assert nopt_loss(*arguments, column([1.0, 1.0, 0.0])).item() == pytest.approx(0.25)


def test_several_estimates_are_averaged():
    q_joint = torch.tensor([[[5.0, 2.0]]])  # excesses -1 and 2
    assert opt_loss(column([3.0]), q_joint, column([1.0]), column([1.0])).item() == pytest.approx(0.5 * (1 + 4) / 2)
    assert nopt_loss(column([3.0]), q_joint, column([1.0]), column([1.0])).item() == pytest.approx(0.5 * 1 / 2)


def test_the_bound_is_tight_for_one_action_of_every_agent_by_hand():
    q_sum = torch.tensor([[[[1.0, 4.0, 0.0], [1.0, 2.0, 3.0]]]])
    q_joint = torch.tensor([[[[2.0, 2.0, 9.0], [0.0, 0.0, 0.0]]]])
    avail = torch.tensor([[[[1, 1, 0], [1, 1, 1]]]])
    # agent 1: min(1 - 2, 4 - 2) + .5 = -.5, its third action is not available; agent 2: min(1, 2, 3) + .5 = 1.5
    found = nopt_min_loss(q_sum, q_joint, column([0.5]), avail, column([1.0]))
    assert found.item() == pytest.approx(0.5 * (0.25 + 2.25) / 2)


def test_it_equals_nested_loops():
    rng = torch.Generator().manual_seed(0)
    q_sum, q_joint = (torch.randn(2, 4, 3, 5, generator=rng) for _ in range(2))
    v, mask = torch.randn(2, 4, 1, generator=rng), (torch.rand(2, 4, 1, generator=rng) < 0.7).float()
    avail = torch.rand(2, 4, 3, 5, generator=rng) < 0.6
    avail[..., 0] |= ~avail.any(-1)
    errors = []
    for b in range(2):
        for t in range(4):
            for i in range(3):
                can = [q_sum[b, t, i, k] - q_joint[b, t, i, k] + v[b, t, 0] for k in range(5) if avail[b, t, i, k]]
                if mask[b, t, 0]:
                    errors.append(min(can))
    expected = sum(0.5 * error**2 for error in errors) / len(errors)
    torch.testing.assert_close(nopt_min_loss(q_sum, q_joint, v, avail, mask), expected)


def test_padding_and_the_joint_value_get_no_gradient():
    q_sum, q_joint, v = (torch.tensor([[[1.0], [2.0]]]).requires_grad_() for _ in range(3))
    mask = column([1.0, 0.0])
    for loss in (opt_loss, nopt_loss):
        loss(torch.where(mask.bool(), q_sum, torch.inf), q_joint + 5, v, mask).backward()
    q_cf = torch.full((1, 2, 1, 2), 3.0, requires_grad=True)
    spoilt = torch.where(mask.unsqueeze(-1).bool(), q_cf, torch.nan)
    nopt_min_loss(spoilt, q_joint.unsqueeze(-1).expand_as(q_cf), v, torch.ones_like(q_cf), mask).backward()
    assert q_joint.grad is None
    for leaf in (q_sum, v, q_cf):
        assert leaf.grad is not None
        assert leaf.grad[0, 0].abs().sum() > 0
        assert (leaf.grad[0, 1] == 0).all()


def test_shapes_are_checked():
    wide = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="shapes must be equal"):
        opt_loss(wide, wide, column([0.0, 0.0]), column([1.0, 1.0]))
    with pytest.raises(ValueError, match=r"q_joint must have shape \(1, 2, any\), got \(1, 3, 1\)"):
        nopt_loss(*[column([0.0, 0.0]), column([0.0] * 3), column([0.0, 0.0])], column([1.0, 1.0]))
    with pytest.raises(ValueError, match=r"v must have shape \(1, 2, 1\), got \(1, 2, 3\)"):
        nopt_min_loss(*[torch.zeros(1, 2, 3, 4)] * 2, wide, torch.ones(1, 2, 3, 4), column([1.0, 1.0]))
