"""Which agents share parameters (`share`): all of them, none, or those of a group.

Wherever a network reads agents' inputs, one per row, `share_parameters` builds it. Agents that do not share have copies
of one class, run by one batched call. Legend: R rows (episodes times agents, the agent's number fastest), N agents, K
copies.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from utils.errors import UserError
from utils.networks import offers


def assign_groups(args, n_agents: int, reported: Sequence | None = None) -> list[int] | None:
    """The group of every agent, N integers; None where one network serves all (`share: all`).

    Args:
        args: with `share`, `share_groups` and, for messages, `env`.
        reported: the types of the agents that the environment gives, numbers or names, for want of `share_groups`.

    Raises:
        UserError: there are no groups, or they do not fit the agents.
    """
    if args.share == "all":
        return None
    if args.share == "none":
        return list(range(n_agents))
    example = [0] * (n_agents - 1) + [1]
    if args.share_groups is None:
        if reported is None:
            raise UserError(
                f"share=groups: env {args.env} says nothing about types of agents; give the group of each of its "
                f"{n_agents} agents, as share_groups={example}"
            )
        kinds = list(dict.fromkeys(reported))
        return [kinds.index(kind) for kind in reported]
    groups = list(args.share_groups)
    if len(groups) != n_agents:
        raise UserError(
            f"share_groups={groups}: {len(groups)} groups for {n_agents} agents of env {args.env}; "
            f"give one number for each agent, as share_groups={example}"
        )
    if sorted(set(groups)) != list(range(max(groups) + 1)):
        raise UserError(f"share_groups={groups}: groups are numbered 0, 1, ... without gaps; renumber them")
    return groups


def share_parameters(build: Callable[[], Any], groups: Sequence[int] | None) -> Any:
    """One network for all agents, or one for each of the groups (`assign_groups`), each drawn anew."""
    if groups is None:
        return build()
    return SeparateAgents([build() for _ in range(max(groups) + 1)], groups)


class SeparateAgents(nn.Module):
    """K copies of a network that are called like one: agent i's rows go through the copy `groups[i]`.

    Parameters and buffers hold all copies, (K, ...). A call maps the network over the agents (`torch.func.vmap`), which
    makes one batched matrix product of every layer. torch's fused GRU cannot be mapped, and so a network that uses it
    has an attribute `fused` to be told so.

    Args:
        copies: networks of one class; any class whose operations vmap knows, with the methods of an agent.
    """

    SEQUENCES = ("unroll", "unroll_features")  # methods besides `forward`, there if the copies offer them

    def __init__(self, copies: Sequence[nn.Module], groups: Sequence[int]):
        super().__init__()
        self.copies = _Methods(_stack(copies))
        self.groups: torch.Tensor
        self.register_buffer("groups", torch.tensor(groups), persistent=False)
        self._one_each = list(groups) == list(range(len(copies)))

    def __getattr__(self, name: str):
        if name in self.SEQUENCES and offers(self.copies.network, name):
            return partial(self._map_rows, name)
        return super().__getattr__(name)

    def forward(self, inputs: torch.Tensor, *memory: torch.Tensor):
        """What the copies' `forward` gives for their agents' rows: inputs (..., R, I), memory of R rows -> (..., R, X).

        `unroll` and `unroll_features` are called and answer likewise.
        """
        return self._map_rows("forward", inputs, *memory)

    def init_hidden(self) -> torch.Tensor:
        """The memories at the start of an episode, (N, H): one episode's rows."""
        return self._map("init_hidden").flatten(0, 1)

    def _map_rows(self, method: str, inputs: torch.Tensor, *memory: torch.Tensor):
        N, R = len(self.groups), inputs.shape[-2]
        if R % N:
            raise ValueError(f"rows must be episodes times {N} agents, got inputs of shape {tuple(inputs.shape)}")
        # (..., R, I) -> (N, ..., R/N, I)
        rows = [x.unflatten(-2, (R // N, N)).movedim(-2, 0) for x in (inputs, *(m.reshape(R, -1) for m in memory))]
        found = self._map(method, *rows)
        back = [x.movedim(0, -2).flatten(-3, -2) for x in (found if isinstance(found, tuple) else (found,))]
        return tuple(back) if isinstance(found, tuple) else back[0]

    def _map(self, method: str, *inputs: torch.Tensor):
        """The method of every agent's copy on its part of the inputs, (N, ...) each."""
        state = {**dict(self.copies.named_parameters()), **dict(self.copies.named_buffers())}
        if not self._one_each:
            state = {name: value[self.groups] for name, value in state.items()}
        call = vmap(lambda own, *seen: functional_call(self.copies, own, (method, *seen)), randomness="different")
        try:
            return call(state, *inputs)
        except RuntimeError as error:
            if "atching rule not implemented" not in str(error):
                raise
            raise UserError(
                f"share: copies of {type(self.copies.network).__name__} cannot run as one, because torch.func.vmap "
                f"does not know one of its operations ({str(error).splitlines()[0]}); set share=all"
            ) from error


class _Methods(nn.Module):
    """A network whose methods are called by name: `functional_call` knows `forward` alone."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, method: str, *inputs: torch.Tensor):
        return getattr(self.network, method)(*inputs)


def _stack(copies: Sequence[nn.Module]) -> Any:
    """The first of the copies, with the parameters and buffers of all in place of its own, (K, ...) each."""
    network: Any = copies[0]
    parameters, buffers = stack_module_state(list(copies))
    for name, value in {**parameters, **buffers}.items():
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, nn.Parameter(value) if name in parameters else value)
    for module in network.modules():
        if hasattr(module, "fused"):
            module.fused = False
    return network
