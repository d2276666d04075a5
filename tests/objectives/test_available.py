"""What is taken over the available actions: by hand, in loops, its gradients, and wherever kernels cannot go."""

import math

import pytest
import torch

from objectives import available
from objectives.available import best_action, log_softmax, logsumexp
from utils import native

KERNELS = [False, pytest.param(True, marks=pytest.mark.skipif(not native.is_there(), reason="no C++ compiler here"))]


@pytest.fixture(params=KERNELS, ids=["torch", "kernels"], autouse=True)
def _by_kernels(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(available, "_kernels_take", lambda q: False)


def rows(A, dtype=torch.float64, flags=torch.uint8):
    """Seven rows of A actions, some of which are not available; those would be the best."""
    generator = torch.Generator().manual_seed(A)
    q = torch.randn(7, A, generator=generator, dtype=dtype)
    avail = torch.rand(7, A, generator=generator) < 0.6
    avail[:, A // 2] = True
    return torch.where(avail, q, q + 50), avail.to(flags)


def allowed(q, avail):
    """The values of the available actions, and which these are."""
    which = [k for k in range(len(q)) if avail[k]]
    return [q[k].item() for k in which], which


def test_by_hand():
    """Q/T = (0, log 3) on the available actions: their sum is 4, their policy (1/4, 3/4)."""
    q, avail = torch.tensor([[0.0, 0.5 * math.log(3), 7.0]]), torch.tensor([[1, 1, 0]])
    assert best_action(q, avail).tolist() == [[1]]
    assert logsumexp(q, avail, 0.5).tolist() == pytest.approx([0.5 * math.log(4)])
    assert log_softmax(q, avail, 0.5).tolist()[0] == pytest.approx([math.log(1 / 4), math.log(3 / 4), -math.inf])


@pytest.mark.parametrize("A", [1, 2, 7, 8, 9, 16, 17, 35])
@pytest.mark.parametrize("flags", [torch.uint8, torch.int32, torch.int64, torch.bool, torch.float32])
def test_in_loops(A, flags):
    q, avail = rows(A, flags=flags)
    T = 0.3
    for one, action, total, policy in zip(
        zip(q, avail, strict=True), best_action(q, avail), logsumexp(q, avail, T), log_softmax(q, avail, T), strict=True
    ):
        values, which = allowed(*one)
        assert action.item() == which[values.index(max(values))]
        expected = T * math.log(sum(math.exp(value / T) for value in values))
        assert total.item() == pytest.approx(expected, abs=1e-9)
        assert policy[which].tolist() == pytest.approx([(value - expected) / T for value in values], abs=1e-9)
        assert all(policy[k] == -math.inf for k in range(A) if k not in which)


@pytest.mark.parametrize("A", [3, 8, 16, 35])
def test_gradients_are_those_of_finite_differences(A):
    q, avail = rows(A)
    q.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: logsumexp(q, avail, 0.7), q)
    # -inf has no differences
    assert torch.autograd.gradcheck(lambda q: log_softmax(q, avail, 0.7)[avail.bool()], q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_available_changes_nothing(dtype):
    q, avail = rows(21, dtype)
    results = []
    for elsewhere in (0.0, 1e30, math.inf, -math.inf, math.nan):
        given = torch.where(avail.bool(), q, torch.tensor(elsewhere, dtype=dtype)).requires_grad_()
        total, policy = logsumexp(given, avail, 0.5), log_softmax(given, avail, 0.5)
        (total.sum() + policy[avail.bool()].square().sum()).backward()
        results.append((best_action(given, avail), total.detach(), policy.detach(), given.grad))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))
    assert not results[0][3][~avail.bool()].any()


def test_of_equal_actions_the_first_is_best():
    q, avail = torch.zeros(3, 40), torch.ones(3, 40)
    avail[1, :5] = 0
    avail[2, :33] = 0
    assert best_action(q, avail).squeeze(1).tolist() == [0, 5, 33]


def test_a_value_that_is_not_a_number_is_not_hidden():
    q, avail = rows(9)
    q[2, 4] = math.nan
    found = logsumexp(q, avail, 1.0)
    assert found.isnan().tolist() == [False, False, True, False, False, False, False]
    assert log_softmax(q, avail, 1.0)[2][avail[2].bool()].isnan().all()
    assert 0 <= best_action(q, avail)[2].item() < 9


@pytest.mark.parametrize("T", [0.1, torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64)])
def test_large_values_overflow_nowhere(T):
    q, avail = torch.tensor([[1e4, 1e4, -1e4]]), torch.ones(1, 3)
    assert logsumexp(q, avail, T).item() == pytest.approx(1e4 + 0.1 * math.log(2))
    assert log_softmax(q, avail, T)[0, :2].tolist() == pytest.approx([-math.log(2)] * 2, abs=2e-2)  # of 1e4 in float32


def test_views_and_more_dimensions():
    q = torch.randn(4, 6, 3, 10, dtype=torch.float64)
    avail = (torch.rand(4, 6, 3, 10) < 0.5).int()
    avail[..., 3] = 1
    for take in (best_action, lambda q, avail: logsumexp(q, avail, 0.2), lambda q, avail: log_softmax(q, avail, 0.2)):
        whole = take(q, avail)
        assert torch.equal(take(q[:, 1:], avail[:, 1:]), whole[:, 1:])
        assert torch.equal(take(q.transpose(0, 1), avail.transpose(0, 1)), whole.transpose(0, 1))


def test_under_vmap_and_in_compiled_code_they_are_the_same():
    q, avail = rows(5)

    def take(q, avail):
        return best_action(q, avail), logsumexp(q, avail, 0.5), log_softmax(q, avail, 0.5)

    expected = take(q, avail)
    for found in (torch.vmap(take)(q, avail), torch.compile(take, backend="eager", fullgraph=True)(q, avail)):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    slopes = torch.func.grad(lambda q: logsumexp(q, avail, 0.5).sum())(q)
    torch.testing.assert_close(slopes, expected[2].exp())


@pytest.mark.parametrize(
    "take", [best_action, lambda q, avail: logsumexp(q, avail, 1.0), lambda q, avail: log_softmax(q, avail, 1.0)]
)
def test_other_shapes_are_refused(take):
    with pytest.raises(ValueError, match=r"q \(2, 3\), avail \(3,\)"):
        take(torch.zeros(2, 3), torch.ones(3))
