"""Section 7 of docs/theory.md: critics that are trained on actions and evaluated at probabilities."""

import numpy as np
import torch

from theory.reference import entropy, policy, random_policies, tensor


def lica_critic(p):
    """A critic of LICA's form, of an agent's probabilities p of two actions: 1 - |p_1 - p_2| by two hidden units."""
    return 1 - torch.relu(p[0] - p[1]) - torch.relu(p[1] - p[0])


def test_7_interior():
    """Section 7 [R]: the critic 1 - |p_1 - p_2| fits r = 0 of both actions exactly and is 1 at equal probabilities."""
    for vertex in ([1.0, 0.0], [0.0, 1.0]):
        assert lica_critic(tensor(vertex)) == 0
    assert lica_critic(tensor([0.5, 0.5])) == 1
    # the gap to the data, Q(s, pi) - Q(s, a_data), sees it
    assert lica_critic(tensor([0.5, 0.5])) - lica_critic(tensor([1.0, 0.0])) == 1


def test_7_policy_gradient():
    """Section 7 [R]: policy gradient on that critic goes to (.5, .5) and believes Q(pi) = 1 where all actions pay 0."""
    logits = torch.tensor([np.log(0.8), np.log(0.2)], requires_grad=True)
    optimiser = torch.optim.SGD([logits], lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        (-lica_critic(torch.softmax(logits, dim=0))).backward()
        optimiser.step()
    pi = torch.softmax(logits, dim=0).detach()
    np.testing.assert_allclose(pi, [0.5, 0.5], atol=0.03)
    assert lica_critic(pi) > 0.9
    vertices = torch.stack([lica_critic(v) for v in torch.eye(2)])
    assert (pi * vertices).sum() == 0  # E_{a ~ pi} Q(a), what that policy really gets


def test_7_linear_critic():
    """Section 7: a critic linear in each agent's probabilities has Q(pi) = E_pi Q(a): no interior to exploit."""
    rng = np.random.default_rng(7)
    q, (first, second) = rng.normal(size=(3, 3)), random_policies(rng, 2, 3)
    np.testing.assert_allclose(first @ q @ second, (np.multiply.outer(first, second) * q).sum())


def test_7_adaptive_entropy():
    """Section 7: the adaptive entropy term (xi / H) H has the gradient xi grad log H, of like size when H is small."""
    slopes = {}
    for name, values in (("even", [0.1, 0.0, 0.0]), ("sure", [3.0, 0.0, 0.0])):
        logits = tensor(values).requires_grad_()
        log_pi = torch.log_softmax(logits, dim=0)
        h = -(log_pi.exp() * log_pi).sum()
        np.testing.assert_allclose(h.item(), entropy(policy(values, 1.0)))
        adaptive = torch.autograd.grad(0.11 * h / h.detach(), logits, retain_graph=True)[0]
        of_log = torch.autograd.grad(0.11 * h.log(), logits, retain_graph=True)[0]
        torch.testing.assert_close(adaptive, of_log)
        slopes[name] = (torch.autograd.grad(h, logits)[0].abs().max() / h).item()
    np.testing.assert_allclose([slopes["even"], slopes["sure"]], [0.0209, 0.6740], atol=1e-3)
