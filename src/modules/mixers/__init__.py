"""Mixers: from the agents' chosen action values to the team's value Q_tot.

A mixer is called as `mixer(agent_qs (B, T, N), states (B, T, S)) -> (B, T, 1)`. One that has a method
`counterfactual` offers a cheaper way to what `counterfactual_q_tot` computes for any mixer; one that has a method
`of_actions` reads more of the agents' values than those of the chosen actions (see `joint_value`). QTRAN's and
`qcgraph` are joint networks with a signature of their own, for `qtran_learner` alone; `qcgraph_qmix` also reads the
agents' features, which `feature_q_learner` gives it.
"""

from collections.abc import Callable
from typing import Any

import torch

from modules.mixers.qmix import QMixer
from modules.mixers.qmix_concave import ConcaveQMixer
from modules.mixers.vdn import VDNMeanMixer, VDNMixer
from utils.networks import knows, offers
from utils.registry import lazy
from utils.shapes import check_shape, may_look_at

# Each is called with the run's args. Those that not every learner can use are imported when asked for, so that
# docs/plugins.md need not carry their files elsewhere.
REGISTRY = {
    "vdn": lambda args: VDNMixer(),
    "vdn_mean": lambda args: VDNMeanMixer(),
    "qmix": QMixer,
    "qmix_concave": ConcaveQMixer,
    "dmaq": lazy("modules.mixers.qplex:DuplexMixer"),
    "qtran_base": lazy("modules.mixers.qtran:QTranBase"),
    "qtran_alt": lazy("modules.mixers.qtran:QTranAlt"),
    "qcgraph": lazy("modules.mixers.qcgraph:QCGraph"),
    "qcgraph_qmix": lazy("modules.mixers.qcgraph:QCGraphMixer"),
}


class InStates:
    """A mixer, or a critic, in the states of a batch: what it makes of them is made once, and on a CPU for played steps
    alone.

    Args:
        network: has the method `at(states)`, or else what it is asked takes the states as its last argument.
        states: (B, T, S).
        mask: (B, T, 1) 1 on played steps, whose values are wanted; elsewhere they may be 0. None: all are wanted.
    """

    def __init__(self, network: Callable, states: torch.Tensor, mask: torch.Tensor | None = None):
        self.shape = states.shape[:2]
        self.index = None  # of the played steps, where the others are left out
        if mask is not None and may_look_at(mask) and mask.mean() < 0.9 and mask.any():
            self.index = mask.flatten().nonzero().squeeze(1)
        states = self._pack(states).contiguous()  # once, not in every hypernetwork
        self.here: Any = network.at(states) if knows(network, "at", "forward") else _Bound(network, states)

    def __call__(self, *given: torch.Tensor) -> torch.Tensor:
        """What the network is called with, (B, T, ...) -> (B, T, 1)"""
        return self._ask(self.here, given)

    def counterfactual(self, *given: torch.Tensor) -> torch.Tensor:
        """Of a mixer, `counterfactual_q_tot`: (B, T, N), (B, T, N, A); of a critic, its method: (B, T, N, A) ->
        (B, T, N, A).
        """
        return self._ask(self.here.counterfactual, given)

    def deviation(self, *given: torch.Tensor) -> torch.Tensor:
        """The critic's method: (B, T, N, A) twice -> (B, T, N)."""
        return self._ask(self.here.deviation, given)

    def _ask(self, method: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self._unpack(method(*map(self._pack, given)))

    def _pack(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) -> (1, P, ...)"""
        return x if self.index is None else x.flatten(0, 1).index_select(0, self.index).unsqueeze(0)

    def _unpack(self, x: torch.Tensor) -> torch.Tensor:
        if self.index is None:
            return x
        rows = x.new_zeros(self.shape.numel(), *x.shape[2:])
        return rows.index_copy(0, self.index, x.squeeze(0)).unflatten(0, self.shape)


class _Bound:
    """A network that is asked with the states each time."""

    def __init__(self, network: Any, states: torch.Tensor):
        self.network, self.states = network, states

    def __call__(self, *given: torch.Tensor) -> torch.Tensor:
        return self.network(*given, self.states)

    def counterfactual(self, *given: torch.Tensor) -> torch.Tensor:
        if len(given) == 1:  # a critic
            return self.network.counterfactual(*given, self.states)
        chosen, qs = given
        return counterfactual_q_tot(self.network, chosen, qs, self.states)

    def deviation(self, *given: torch.Tensor) -> torch.Tensor:
        return self.network.deviation(*given, self.states)


def joint_value(
    mixer: Callable | None,
    q: torch.Tensor,
    actions: torch.Tensor,
    avail: torch.Tensor,
    states: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a joint action is worth: Q_tot(a; s), or each agent's Q_i(a_i) without a mixer.

    A mixer is given the values of the chosen actions. One that has a method `of_actions` is given everything here,
    since it also reads which actions they are and what the best ones are worth.

    Args:
        q, avail: (B, T, N, A) values of all actions, and 1 where an action is available.
        actions: (B, T, N, 1).
        states: (B, T, S).
        mask: (B, T, 1) 1 on played steps; what is returned elsewhere means nothing. None: all are wanted.

    Returns:
        (B, T, 1), or (B, T, N) without a mixer.
    """
    check_shape("actions", actions, (*q.shape[:-1], 1))
    own: Callable[..., torch.Tensor] | None = getattr(mixer, "of_actions", None)
    if own is not None:
        return own(q, actions, avail, states)
    chosen = q.gather(3, actions).squeeze(3)  # (B, T, N)
    return chosen if mixer is None else InStates(mixer, states, mask)(chosen)


def counterfactual_q_tot(mixer: Callable, chosen: torch.Tensor, qs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Q_tot when one agent changes its action and the others keep theirs: [..., i, k] = Q_tot(k, a_-i; s).

    Args:
        chosen: (B, T, N) values of the actions that were taken.
        qs: (B, T, N, A) values of all actions.
        states: (B, T, S).

    Returns:
        (B, T, N, A). Without a `counterfactual` of the mixer's own, or where a subclass overrides `forward` alone, this
        costs N*A mixer evaluations per step.
    """
    B, T, N, A = qs.shape
    check_shape("chosen", chosen, (B, T, N))
    if offers(mixer, "counterfactual"):
        own: Any = mixer
        return own.counterfactual(chosen, qs, states)
    agent = torch.eye(N, dtype=torch.bool, device=qs.device).view(1, 1, N, 1, N)
    joint = torch.where(agent, qs.unsqueeze(-1), chosen.view(B, T, 1, 1, N))  # (B, T, N, A, N)
    repeated = states.view(B, T, 1, -1).expand(B, T, N * A, -1).reshape(B, T * N * A, -1)
    return mixer(joint.reshape(B, T * N * A, N), repeated).view(B, T, N, A)


def mixer_gains(mixer: Callable, chosen: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """df/dq_i where the data is: by how much Q_tot rises with agent i's value. No gradient flows through it.

    Args:
        chosen: (B, T, N) values of the actions that were taken.
        states: (B, T, S).

    Returns:
        (B, T, N), not negative of a monotone mixer; 1 of VDN. Callers may be under `torch.no_grad`.
    """
    check_shape("chosen", chosen, (*states.shape[:2], None))
    with torch.no_grad():  # what is differentiated here is not differentiated again
        return torch.func.grad(lambda q: mixer(q, states).sum())(chosen.detach())
