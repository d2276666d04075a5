"""The GRU over whole sequences: by hand, against the cell stepped over each sequence alone, and its gradients."""

import math

import pytest
import torch
from torch import nn

from modules.agents.gru import _for_cudnn, _whole_gru, gru, run_gru
from utils import native

X, H = 3, 4
LENGTHS = [[1], [6, 6, 6], [7, 5, 5, 1], [4, 1, 1, 1, 1], [3, 2, 1], [5] * 8 + [3] * 9 + [1] * 7]  # longest first
kernels = pytest.mark.skipif(not native.is_there(), reason="no C++ compiler here")


def make(lengths):
    """A cell, packed inputs, memories, and each row's (sequence, step)."""
    torch.manual_seed(len(lengths))
    cell = nn.GRUCell(X, H).double()
    where = [(r, t) for t in range(lengths[0]) for r, length in enumerate(lengths) if t < length]
    counts = [sum(t < length for length in lengths) for t in range(lengths[0])]
    x = torch.randn(len(where), X, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(len(lengths), H, dtype=torch.float64, requires_grad=True)
    return cell, x, hidden, counts, where


def one_by_one(cell, x, hidden, where):
    """Torch's cell, one sequence and one step at a time."""
    memories, rows = {}, []
    for row, (r, t) in enumerate(where):
        before = hidden[r] if t == 0 else memories[r, t - 1]
        memories[r, t] = cell(x[row].unsqueeze(0), before.unsqueeze(0))[0]
        rows.append(memories[r, t])
    return torch.stack(rows)


def test_one_unit_by_hand():
    """All weights 1 and all biases 0: r = z = s(x + h), n = tanh(x + r h), h' = n + z (h - n)."""
    cell = nn.GRUCell(1, 1)
    for parameter in cell.parameters():
        nn.init.constant_(parameter, float(parameter.dim() == 2))
    h, memories = 0.5, run_gru(torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.5]]), cell, [1, 1])
    for t, x in enumerate((1.0, -1.0)):
        gate = 1 / (1 + math.exp(-(x + h)))
        n = math.tanh(x + gate * h)
        h = n + gate * (h - n)
        assert memories[t].item() == pytest.approx(h, abs=1e-6)
    assert h == pytest.approx(-0.1686, abs=1e-4)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("lengths", LENGTHS)
def test_it_is_the_cell_on_each_sequence_alone(lengths):
    cell, x, hidden, counts, where = make(lengths)
    expected = one_by_one(cell, x, hidden, where)
    found = run_gru(x, hidden, cell, counts)
    torch.testing.assert_close(found, expected)
    assert torch.equal(run_gru(x.detach(), hidden.detach(), cell, counts), found)
    with torch.no_grad():
        assert torch.equal(run_gru(x, hidden, cell, counts), found)
    weights = torch.randn_like(found)
    inputs = [x, hidden, *cell.parameters()]
    ours, theirs = (torch.autograd.grad((rows * weights).sum(), inputs) for rows in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
        assert one.any()


def test_gradients_are_those_of_finite_differences():
    cell, x, hidden, counts, _ = make([3, 2])
    weights = tuple(cell.parameters())

    def run(x, hidden, *weights):
        parts = dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True))
        return run_gru(x, hidden, type("Cell", (), parts), counts)

    assert torch.autograd.gradcheck(run, (x, hidden, *weights))


def test_memory_alone_may_need_no_gradient():
    """As in a learner: the memory starts at 0, and inputs may be constant."""
    cell, x, hidden, counts, _ = make([4, 2])
    run_gru(x.detach(), hidden.detach(), cell, counts).sum().backward()
    expected = make([4, 2])[0]
    run_gru(x, hidden, expected, counts).sum().backward()
    for one, other in zip(cell.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_plain_operations_give_the_same():
    cell, x, hidden, _, _ = make([5, 5, 5])
    rows = x.unflatten(0, (5, 3))
    torch.testing.assert_close(gru(rows, hidden, cell).flatten(0, 1), run_gru(x, hidden, cell, [3] * 5))


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_halves_of_the_sequences_are_the_whole(dtype, monkeypatch):
    torch.manual_seed(0)
    cell = nn.GRUCell(8, 32).to(dtype)
    counts = [41] * 3 + [20] * 2 + [7]
    x, hidden = torch.randn(sum(counts), 8, dtype=dtype), torch.randn(41, 32, dtype=dtype)
    direction = torch.randn(sum(counts), 32, dtype=dtype)
    given = (x.requires_grad_(), hidden.requires_grad_(), *cell.parameters())
    results = []
    for least in (2**60, 0):
        monkeypatch.setattr("utils.aside.LEAST_WORK", least)
        found = run_gru(x, hidden, cell, counts)
        results.append([found, *torch.autograd.grad(found, given, direction)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@kernels
def test_without_gradients_nothing_is_kept_for_them(monkeypatch):
    cell, x, hidden, counts, _ = make([4, 2])
    gates = []
    call = native.call
    monkeypatch.setattr(native, "call", lambda *arguments: (gates.append(arguments[-1]), call(*arguments)))
    run_gru(x, hidden, cell, counts)
    with torch.no_grad():
        run_gru(x, hidden, cell, counts)
    assert gates[0] is not None
    assert gates[1] is None


@kernels
def test_rows_that_are_not_there_are_not_read():
    cell, x, hidden, counts, _ = make([4, 2])
    for rows, memory, message in (
        (x[1:], hidden, r"x must have shape \(6, any\), got \(5, 3\)"),
        (x, hidden[1:], r"hidden_state must have shape \(2, 4\), got \(1, 4\)"),
        (x, hidden[:, 1:], r"hidden_state must have shape \(2, 4\), got \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run_gru(rows, memory, cell, counts)


@kernels
def test_as_one_operation_it_is_the_same():
    cell, x, hidden, counts, _ = make([5, 5])
    inputs = (
        x,
        hidden,
        *(dict(cell.named_parameters())[f"{kind}_{at}"] for kind in ("weight", "bias") for at in ("ih", "hh")),
    )
    found, expected = _whole_gru(*inputs), run_gru(x, hidden, cell, counts)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(result, inputs, weights) for result in (found, expected))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    torch.library.opcheck(_whole_gru, inputs)


def test_what_is_given_to_cudnn_has_the_names_that_torch_asks_for():
    _, x, hidden, _, _ = make([5, 5])
    given = _for_cudnn(x, hidden, [])
    forward, backward = (
        getattr(torch.ops.aten, name).default._schema for name in ("_cudnn_rnn", "_cudnn_rnn_backward")
    )
    assert [argument.name for argument in forward.arguments] == list(given)
    more = {"output", "grad_output", "grad_hy", "grad_cy", "reserve", "output_mask"}
    assert {argument.name for argument in backward.arguments} == {*given, *more}
    assert given["input"].shape == (5, 2, X)
    assert given["hx"].shape == (1, 2, H)
