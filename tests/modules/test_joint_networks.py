"""QTRAN's joint networks: their inputs in loops, sizes and names, and counterfactuals."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from modules.mixers.qtran import QTranAlt, QTranBase

B, T, N, A, S, H = 2, 3, 3, 4, 5, 6


def make(mixer_class, arch="qtran_paper", size="small"):
    torch.manual_seed(0)
    sizes = {"n_agents": N, "n_actions": A, "state_shape": S, "rnn_hidden_dim": H, "mixing_embed_dim": 7}
    return mixer_class(SimpleNamespace(**sizes, qtran_arch=arch, network_size=size))


class Batch(dict):
    batch_size, max_seq_length = B, T


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(1)
    actions = F.one_hot(torch.randint(A, (B, T, N), generator=rng), A)
    return Batch(state=torch.randn(B, T, S, generator=rng), actions_onehot=actions)


@pytest.fixture
def memories():
    return torch.randn(B, T, N, H, generator=torch.Generator().manual_seed(2))


def joint_input(mixer, batch, memories, b, t, masked=None):
    """What the network reads of the joint action at one step; agent `masked` has not decided."""
    onehot = batch["actions_onehot"][b, t].float()
    if masked is not None:
        onehot = onehot * (torch.arange(N) != masked).unsqueeze(-1)
    if mixer.action_encoding is None:
        return onehot.flatten()
    return sum(mixer.action_encoding(torch.cat([memories[b, t, i], onehot[i]])) for i in range(N))


@pytest.mark.parametrize("size", ["small", "big"])
@pytest.mark.parametrize("arch", ["qtran_paper", "coma_critic"])
def test_values_are_those_of_the_loops(arch, size, batch, memories):
    mixer = make(QTranBase, arch, size)
    q, v = mixer(batch, memories)
    assert q.shape == v.shape == (B * T, 1)
    for row, (b, t) in enumerate((b, t) for b in range(B) for t in range(T)):
        inputs = torch.cat([batch["state"][b, t], joint_input(mixer, batch, memories, b, t)])
        torch.testing.assert_close(q[row], mixer.Q(inputs))
        torch.testing.assert_close(v[row], mixer.V(batch["state"][b, t]))


@pytest.mark.parametrize("arch", ["qtran_paper", "coma_critic"])
def test_counterfactuals_are_those_of_the_loops(arch, batch, memories):
    mixer = make(QTranAlt, arch)
    found = mixer.counterfactual(batch, memories)
    taken, v = mixer(batch, memories)
    assert found.shape == (B * T, N, A)
    for row, (b, t) in enumerate((b, t) for b in range(B) for t in range(T)):
        torch.testing.assert_close(v[row], mixer.V(batch["state"][b, t]))
        for i in range(N):
            joint = joint_input(mixer, batch, memories, b, t, masked=i)
            expected = mixer.Q(torch.cat([batch["state"][b, t], joint, torch.eye(N)[i]]))
            torch.testing.assert_close(found[row, i], expected)
            action = batch["actions_onehot"][b, t, i].argmax()
            torch.testing.assert_close(taken[row, i], expected[action])


@pytest.mark.parametrize("arch", ["qtran_paper", "coma_critic"])
def test_an_agents_counterfactuals_do_not_depend_on_what_it_did(arch, batch, memories):
    mixer = make(QTranAlt, arch)
    changed = batch["actions_onehot"].clone()
    changed[:, :, 1] = changed[:, :, 1].roll(1, dims=-1)
    before, after = (mixer.counterfactual(batch, memories, actions) for actions in (None, changed))
    torch.testing.assert_close(before[:, 1], after[:, 1])
    assert not torch.allclose(before[:, 0], after[:, 0])


@pytest.mark.parametrize("mixer_class", [QTranBase, QTranAlt])
def test_other_joint_actions_can_be_asked_for(mixer_class, batch, memories):
    mixer = make(mixer_class)
    other = batch["actions_onehot"].roll(1, dims=-1)
    asked, _ = mixer(batch, memories, other)
    there, _ = mixer(Batch(batch, actions_onehot=other), memories)
    assert torch.equal(asked, there)
    assert not torch.equal(asked, mixer(batch, memories)[0])


def test_parameter_names_and_sizes_are_pymarls():
    def shapes(mixer):
        return {key: tuple(value.shape) for key, value in mixer.state_dict().items() if key.endswith("weight")}

    paper = {"action_encoding.0.weight": (10, 10), "action_encoding.2.weight": (10, 10)}
    small = {
        "Q.2.weight": (7, 7),
        "Q.4.weight": (1, 7),
        "V.0.weight": (7, 5),
        "V.2.weight": (7, 7),
        "V.4.weight": (1, 7),
    }
    assert shapes(make(QTranBase)) == {**paper, **small, "Q.0.weight": (7, 15)}
    assert shapes(make(QTranBase, "coma_critic")) == {**small, "Q.0.weight": (7, 17)}
    assert {"Q.6.weight", "V.6.weight"} <= shapes(make(QTranBase, size="big")).keys()
    alt = shapes(make(QTranAlt))
    assert (alt["Q.0.weight"], alt["Q.4.weight"]) == ((7, 18), (4, 7))


def test_errors_name_what_is_wrong(batch, memories):
    with pytest.raises(ValueError, match="qtran_arch must be coma_critic or qtran_paper, got 'x'"):
        make(QTranBase, "x")
    mixer = make(QTranBase)
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 3, 3, 4\), got \(2, 3, 3, 1\)"):
        mixer(batch, memories, torch.zeros(B, T, N, 1))
    with pytest.raises(ValueError, match=r"hidden_states must have shape \(2, 3, 3, any\), got \(2, 2, 3, 6\)"):
        mixer(batch, memories[:, :2])
