"""Behaviour models: nested loops over the networks' formulas, what they may not know, padding, what they can learn."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from modules.behaviour import REGISTRY
from modules.behaviour.cloning import BehaviourCloning, masked_log_softmax
from modules.behaviour.cvae import JointCVAE
from objectives.behaviour import episode_log_likelihood, model_loss, sampled_log_likelihood

NAN, INF = float("nan"), float("inf")
T, B, N, A, I, K = 5, 4, 2, 5, 6, 2
LENGTHS = (5, 1, 3, 0)  # of the episodes; the last is padding throughout
MODELS = pytest.mark.parametrize("name", REGISTRY)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks as small as these are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def make_model(name, seed=0, inputs=I, actions=A, latent=3, hidden=7, samples=K):
    torch.manual_seed(seed)
    block = SimpleNamespace(hidden_dim=hidden, latent_dim=latent, kl_weight=1.0, samples=samples)
    return REGISTRY[name](inputs, SimpleNamespace(n_actions=actions, behaviour=block))


def random_episodes(seed=0):
    """inputs (T, B, N, I), avail (B, T, N, A), available actions (B, T, N, 1), mask (B, T, 1)."""
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(T, B, N, I, generator=rng)
    avail = (torch.rand(B, T, N, A, generator=rng) < 0.6).int()
    avail[..., 0] |= avail.sum(-1) == 0
    actions = torch.multinomial(avail.float().view(-1, A), 1, generator=rng).view(B, T, N, 1)
    mask = (torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1)).float().unsqueeze(-1)
    return inputs, avail, actions, mask


def training_loss(model, episodes, seed=1):
    """The loss and its stats, with the same draws of the latents for the same seed."""
    torch.manual_seed(seed)
    log_beta, posterior = model(*episodes)
    return model_loss(log_beta, posterior, *episodes[2:], kl_weight=0.5)


def gru_step(gru, x, h):
    """One step of a GRU from its weights: x, h (H,) -> (H,)."""
    i = (gru.weight_ih_l0 @ x + gru.bias_ih_l0).chunk(3)
    j = (gru.weight_hh_l0 @ h + gru.bias_hh_l0).chunk(3)
    reset, update = torch.sigmoid(i[0] + j[0]), torch.sigmoid(i[1] + j[1])
    return (1 - update) * torch.tanh(i[2] + reset * j[2]) + update * h


def stepped_policy(policy, inputs, avail, context):
    """Log-probabilities of one agent in one episode: inputs (t, I), avail (t, A), context (H,) -> (t, A)."""
    h, rows = torch.zeros(7), []
    for x, can in zip(inputs, avail, strict=True):
        h = gru_step(policy.rnn, F.relu(policy.fc1(x) + context), h)
        logits = policy.fc2(h)
        total = math.log(sum(math.exp(logits[k].item()) for k in range(A) if can[k]))
        rows.append(torch.stack([logits[k] - total if can[k] else torch.tensor(-torch.inf) for k in range(A)]))
    return torch.stack(rows)


# --- what all models keep to


@MODELS
def test_shapes_and_probabilities(name):
    model, (inputs, avail, actions, mask) = make_model(name), random_episodes()
    log_beta, posterior = model(inputs, avail, actions, mask)
    used = model.log_probs(inputs, avail, actions, mask)
    assert log_beta.shape == ((K if name == "cvae_joint" else 1), B, T, N, A)
    assert used.shape == (B, T, N, A)
    if name == "cvae_joint":
        assert [part.shape for part in posterior] == [(B, 3), (B, 3)]
        assert (log_beta[0] != log_beta[1]).any()
    else:
        assert posterior is None
        close(used, log_beta[0], 0)
    for policies in (*log_beta, used):
        close(policies.exp().sum(dim=-1), torch.ones(B, T, N))
        assert ((policies == -torch.inf) == (avail == 0)).all()


@MODELS
@pytest.mark.parametrize("wild", [1e6, NAN, INF])
def test_padding_changes_neither_outputs_nor_gradients(name, wild):
    clean = random_episodes()
    inputs, avail, actions, mask = (x.clone() for x in clean)
    for b, length in enumerate(LENGTHS):
        inputs[length:, b] = wild
        avail[b, length:] = 0  # as some environments show it behind the end
        actions[b, length:] = 1
    played = mask.squeeze(-1).bool()
    results = []
    for episodes in (clean, (inputs, avail, actions, mask)):
        model = make_model(name)
        used = model.log_probs(*episodes)
        assert not used.isnan().any()
        loss, stats = training_loss(model, episodes)
        loss.backward()
        results.append([loss.detach(), used[played].detach(), *stats.values(), *(p.grad for p in model.parameters())])
    for dirty, value in zip(*reversed(results), strict=True):
        close(dirty, value, 0)
        assert value.isfinite().all() or value is results[0][1]


def test_masked_log_softmax():
    logits = torch.tensor([[1.0, 2.0, 9.0], [NAN, 0.5, INF], [1.0, 2.0, 3.0]], requires_grad=True)
    avail = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    log_beta = masked_log_softmax(logits, avail)
    second = -math.log(1 + math.exp(-1))
    close(log_beta.detach(), [[second - 1, second, -INF], [-INF, 0.0, -INF], [-INF, -INF, -INF]])
    log_beta[0, 0].backward()
    close(logits.grad, [[1 - math.exp(second - 1), -math.exp(second), 0.0], [0.0] * 3, [0.0] * 3])


@MODELS
def test_gradients_flow_into_the_model_alone_and_into_all_of_it(name):
    model, (inputs, *others) = make_model(name), random_episodes()
    inputs.requires_grad_()
    loss, _ = training_loss(model, (inputs, *others))
    loss.backward()
    assert inputs.grad is None
    assert all(p.grad is not None and (p.grad != 0).any() for p in model.parameters())


@MODELS
def test_same_seed_same_weights(name):
    def train(seed):
        model, episodes = make_model(name, seed), random_episodes()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(3):
            loss, _ = model_loss(*model(*episodes), *episodes[2:], kl_weight=1.0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return torch.nn.utils.parameters_to_vector(model.parameters())

    first, again, other = train(0), train(0), train(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@MODELS
def test_shape_errors_name_both_shapes(name):
    model, (inputs, avail, actions, mask) = make_model(name), random_episodes()
    for call in (model, model.log_probs):
        with pytest.raises(ValueError, match=r"inputs must have shape \(5, 4, 2, any\), got \(4, 5, 2, 6\)"):
            call(inputs.transpose(0, 1), avail, actions, mask)
        with pytest.raises(ValueError, match=r"inputs must have shape \(4, 4, 2, any\), got \(5, 4, 2, 6\)"):
            call(inputs, avail[:, :-1], actions, mask)
        with pytest.raises(ValueError, match=r"actions must have shape \(4, 5, 2, 1\), got \(4, 5, 2\)"):
            call(inputs, avail, actions.squeeze(-1), mask)
        with pytest.raises(ValueError, match=r"mask must have shape \(4, 5, 1\), got \(4, 5\)"):
            call(inputs, avail, actions, mask.squeeze(-1))


def test_registry():
    assert isinstance(make_model("bc_rnn"), BehaviourCloning)
    assert isinstance(make_model("cvae_joint"), JointCVAE)


# --- the models' formulas and what each may know


def test_cloning_equals_its_formula_in_nested_loops():
    model, episodes = make_model("bc_rnn"), random_episodes()
    inputs, avail = episodes[:2]
    log_beta = model.log_probs(*episodes)
    for b, length in enumerate(LENGTHS):
        for i in range(N):
            if length:
                expected = stepped_policy(model.policy, inputs[:length, b, i], avail[b, :length, i], torch.zeros(7))
                close(log_beta[b, :length, i], expected, 1e-5)


def test_cloning_knows_neither_the_future_nor_actions_nor_other_agents():
    model, (inputs, avail, actions, mask) = make_model("bc_rnn"), random_episodes()
    before = model.log_probs(inputs, avail, actions, mask)
    assert torch.equal(model.log_probs(inputs, avail, (actions + 1) % A, mask), before)
    inputs = inputs.clone()
    inputs[2, 0, 1] += 1.0  # step 2, episode 0, agent 1
    changed = (model.log_probs(inputs, avail, actions, mask).exp() != before.exp()).any(dim=-1)
    expected = torch.zeros(B, T, N, dtype=torch.bool)
    expected[0, 2:, 1] = avail[0, 2:, 1].sum(dim=-1) > 1  # a single available action is certain
    assert expected.any()
    assert torch.equal(changed, expected)


def test_cvae_equals_its_formula_in_nested_loops():
    model, episodes = make_model("cvae_joint"), random_episodes()
    inputs, avail, actions, _ = episodes
    torch.manual_seed(3)
    log_beta, (mean, logvar) = model(*episodes)
    used = model.log_probs(*episodes)
    torch.manual_seed(3)
    noise = torch.randn(K, B, 3)
    for b, length in enumerate(LENGTHS):
        summary = torch.zeros(7)
        for i in range(N):
            h = torch.zeros(7)
            for t in range(length):
                one_hot = torch.tensor([float(k == actions[b, t, i, 0]) for k in range(A)])
                h = gru_step(model.encoder_rnn, F.relu(model.encoder_fc(torch.cat([inputs[t, b, i], one_hot]))), h)
                summary = summary + h / (N * length)
        expected = model.mean_logvar(summary)
        close(torch.cat([mean[b], logvar[b]]), expected, 1e-5)
        deviation = (0.5 * expected[3:]).exp()
        latents = [expected[:3] + deviation * noise[k, b] for k in range(K)] + [expected[:3]]
        for z, policies in zip(latents, (*log_beta, used), strict=True):
            context = model.latent_fc.weight @ z
            for i in range(N if length else 0):
                stepped = stepped_policy(model.policy, inputs[:length, b, i], avail[b, :length, i], context)
                close(policies[b, :length, i], stepped, 1e-5)


def test_agents_share_one_latent_for_each_episode():
    model, (inputs, avail, actions, mask) = make_model("cvae_joint"), random_episodes()
    avail = torch.ones_like(avail)
    before = model.log_probs(inputs, avail, actions, mask)
    actions[0, 3, 1] = (actions[0, 3, 1] + 1) % A  # episode 0, its last step, agent 1
    changed = (model.log_probs(inputs, avail, actions, mask) != before).any(dim=-1)
    assert changed[0].all()  # all steps and agents
    assert not changed[1:].any()
    # The decoder itself knows no action, and of the inputs no later ones and those of no other agent.
    z = torch.randn(1, B, 3)
    before = model.decode(inputs, avail, mask, z)
    inputs[2, 0, 1] += 1.0
    changed = (model.decode(inputs, avail, mask, z) != before).any(dim=-1)[0]
    expected = torch.zeros(B, T, N, dtype=torch.bool)
    expected[0, 2:, 1] = True
    assert torch.equal(changed, expected)
    with pytest.raises(ValueError, match=r"z must have shape \(any, 4, 3\), got \(1, 2, 3\)"):
        model.decode(inputs, avail, mask, z[:, :2])


# --- a replay of two deterministic joint policies, (0, 1) and (1, 0), whose agents see but their own index


def two_policies(episodes=16):
    actions = torch.tensor([[0, 1], [1, 0]]).repeat(episodes // 2, 1).view(episodes, 1, 2, 1)
    return torch.eye(2).expand(1, episodes, 2, 2), torch.ones(episodes, 1, 2, 2), actions, torch.ones(episodes, 1, 1)


def fitted(name, replay, steps, seed=0, kl_weight=0.5, **sizes):
    model = make_model(name, seed, inputs=replay[0].shape[-1], actions=replay[1].shape[-1], **sizes)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss, _ = model_loss(*model(*replay), *replay[2:], kl_weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def test_a_product_clone_loses_log_2_nats_and_mixes_the_policies():
    replay = two_policies()
    model = fitted("bc_rnn", replay, 200)
    with torch.no_grad():
        log_beta = model.log_probs(*replay)
    # the replay's entropy is log 2 of an episode, the clone needs 2 log 2
    close(episode_log_likelihood(log_beta.unsqueeze(0), *replay[2:]), torch.full((1, 16), -2 * math.log(2)), 1e-3)
    beta = log_beta[0, 0].exp()
    joint = torch.outer(beta[0], beta[1])
    close(joint[0, 0] + joint[1, 1], 0.5, 1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_one_shared_latent_recovers_both_policies(seed):
    replay = two_policies()
    model = fitted("cvae_joint", replay, 400, seed, hidden=16, latent=2, samples=2)
    inputs, avail, actions, mask = (replay[0][:, :2], *(x[:2] for x in replay[1:]))
    with torch.no_grad():
        log_beta = model.log_probs(inputs, avail, actions, mask)
        assert (log_beta.gather(-1, actions).exp() > 0.95).all()  # each episode's own policy
        drawn = model.decode(inputs, avail, mask, torch.randn(1000, 2, 2))  # from the prior
    beta = drawn[:, 0, 0].exp()  # (1000, N, A)
    joint = torch.einsum("ka,kb->ab", beta[:, 0], beta[:, 1]) / 1000
    assert joint[0, 0] + joint[1, 1] < 0.15  # half of it for the product
    log_likelihood = sampled_log_likelihood(episode_log_likelihood(drawn, actions, mask))
    assert (log_likelihood > -math.log(2) - 0.25).all()  # -2 log 2 for the product


def test_the_latent_stays_unused_where_agents_act_independently():
    torch.manual_seed(5)
    inputs, avail, _, mask = two_policies(episodes=256)
    actions = torch.randint(2, (256, 1, 2, 1))
    model = fitted("cvae_joint", (inputs, avail, actions, mask), 150, kl_weight=1.0, hidden=16, latent=2)
    with torch.no_grad():
        close(model.log_probs(inputs, avail, actions, mask).exp(), torch.full((256, 1, 2, 2), 0.5), 0.1)
