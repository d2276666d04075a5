"""What the heads say of single actions, beside pictures: against loops over agents and actions."""

import pytest
import torch
from greedy_cases import SHORT, greedy_args
from helpers import make_learner, random_batch, shake

from learners.q_learner import Transitions
from utils.networks import unroll


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("utilities", ["shared", "separate"])
def test_head_values_by_loops(utilities):
    """Q_tot of agent i's action k, where all others play the best of theirs."""
    separate = {"heads": {"utilities": "separate", "act": "global"}, "mac": "gated_mac", "gate": {"acts_on": "none"}}
    learner = make_learner(greedy_args(mixer="qmix", **(separate if utilities == "separate" else {})))
    shake(learner, seed=1, size=0.3)
    batch = random_batch(learner.args, seed=1, episodes=SHORT)
    found = learner.head_values(batch)
    if utilities == "shared":
        q_i = q_c = unroll(learner.mac, batch)
    else:
        q_i, q_c = learner.mac.unroll_heads(batch)
    assert torch.equal(found["independent"], q_i)
    q_c = q_c.detach()
    avail = Transitions.of(batch).avail
    B, T, N, A = q_c.shape
    for b in range(B):
        for t in range(T):
            best = [max(float(q_c[b, t, j, k]) for k in range(A) if avail[b, t, j, k]) for j in range(N)]
            for i in range(N):
                for k in range(A):
                    chosen = torch.tensor([*best[:i], float(q_c[b, t, i, k]), *best[i + 1 :]])
                    q_tot = learner.mixer(chosen.view(1, 1, N), batch["state"][b, t].view(1, 1, -1))
                    assert float(found["cooperative"][b, t, i, k]) == pytest.approx(float(q_tot.detach()), abs=1e-9)


def test_agent_weights():
    learner = make_learner(greedy_args())
    learner.weights = torch.tensor([0.3, 0.7])
    batch = random_batch(learner.args, seed=1, episodes=SHORT)
    weights = learner.agent_weights(batch)
    assert weights.shape == batch["actions"].shape[:3]
    assert weights.unique().tolist() == pytest.approx([0.3])
