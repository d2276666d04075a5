"""The controller (PyMARL's BasicMAC): agents that share one network or not, unrolled over whole episodes in one call.

Legend: B episodes, T steps, N agents, A actions, I inputs of an agent.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from components.action_selectors import REGISTRY as action_REGISTRY
from modules.agents import REGISTRY as agent_REGISTRY
from modules.agents.sharing import share_parameters
from utils.networks import (
    Packing,
    offers,
    sequence_input_size,
    sequence_inputs,
    step_features,
    unroll_network,
    unroll_network_features,
)
from utils.registry import resolve


class BasicMAC:
    def __init__(self, scheme, groups, args):
        self.n_agents = args.n_agents
        self.args = args
        self._build_agents(self._get_input_shape(scheme))
        self.agent_output_type = args.agent_output_type
        self.action_selector = resolve("action_selector", args.action_selector, action_REGISTRY)(args)
        self.records_behaviour = "behaviour" in scheme
        self.behaviour: Any = None  # (len(bs), N, A) probabilities of the last selection, if the scheme stores them
        self.hidden_states: Any = None  # (B, N, H) after init_hidden, (B * N, H) after a step, as in PyMARL

    def select_actions(self, ep_batch, t_ep: int, t_env: int, bs=slice(None), test_mode: bool = False) -> torch.Tensor:
        """Actions (len(bs), N) of the episodes `bs` at step `t_ep`."""
        avail_actions = ep_batch["avail_actions"][:, t_ep]
        agent_outputs = self._acting_values(ep_batch, t_ep, test_mode)
        actions = self.action_selector.select_action(agent_outputs[bs], avail_actions[bs], t_env, test_mode=test_mode)
        if self.records_behaviour:
            self.behaviour = self.action_selector.policy(agent_outputs[bs], avail_actions[bs])
        return actions

    def _acting_values(self, ep_batch, t: int, test_mode: bool) -> torch.Tensor:
        """What the action selector chooses from, (B, N, A)."""
        return self.forward(ep_batch, t, test_mode=test_mode)

    def forward(self, ep_batch, t: int, test_mode: bool = False) -> torch.Tensor:
        """Action values, or policies if `agent_output_type` is "pi_logits", of step t: (B, N, A)."""
        outputs, self.hidden_states = self.agent(self._build_inputs(ep_batch, t), self.hidden_states)
        outputs = outputs.view(ep_batch.batch_size, self.n_agents, -1)
        return self._to_output(outputs, ep_batch["avail_actions"][:, t], test_mode)

    def unroll(self, batch, test_mode: bool = False) -> torch.Tensor:
        """`forward` for every step of the batch from fresh memory, in one sequence call: (B, T, N, A).

        Behind an episode's end, where nothing is learned from, agents' outputs may be 0 instead (`Packing`).

        Agents without an `unroll` of their own are stepped, and so are agents and controllers that override what one
        step does without saying what a sequence does: they must train on what they act on.
        """
        if not offers(self.agent, "unroll") or self._step_is_overridden():
            self.init_hidden(batch.batch_size)
            return torch.stack([self.forward(batch, t, test_mode) for t in range(batch.max_seq_length)], dim=1)
        return self._to_output(self._run(self.agent, batch), batch["avail_actions"], test_mode)

    def unroll_features(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """`unroll`, and the agents' features: (B, T, N, A), (B, T, N, H).

        Features are memories after every step; of agents without memory, the last hidden layer.
        """
        if not offers(self.agent, "unroll_features") or self._step_is_overridden():
            return step_features(self, batch)
        inputs = self._build_sequence_inputs(batch)
        outputs, features = unroll_network_features(self.agent, inputs, Packing.of(batch))
        return self._to_output(outputs.transpose(0, 1), batch["avail_actions"], False), features.transpose(0, 1)

    def unroll_others(self, batch, network=None) -> torch.Tensor:
        """The values that agent j would see on the history of agent i, [..., i, j, :]: (B, T, N, N, A).

        The network is the agents' own, or one with the same inputs.
        """
        inputs = self._build_sequence_inputs(batch)  # (T, B, N, I), the agents' ids last
        T, B, N, _ = inputs.shape
        if self.args.obs_agent_id:
            histories = inputs[..., :-N].unsqueeze(3).expand(T, B, N, N, -1)
            ids = torch.eye(N, device=inputs.device).expand(T, B, N, N, N)
            swapped = torch.cat([histories, ids], dim=-1)
        elif self.args.agent_groups is None:
            raise ValueError("without obs_agent_id every agent sees the same values; nothing is another agent's")
        else:
            swapped = inputs.unsqueeze(3).expand(T, B, N, N, -1)
        # Rows of agent j go through its network.
        values = unroll_network(network or self.agent, swapped.reshape(T, B, N * N, -1), Packing.of(batch))
        return values.transpose(0, 1).reshape(B, T, N, N, -1)

    def init_hidden(self, batch_size: int) -> None:
        self.hidden_states = self.agent.init_hidden().unsqueeze(0).expand(batch_size, self.n_agents, -1)

    def parameters(self):
        return self.agent.parameters()

    def load_state(self, other_mac: "BasicMAC") -> None:
        self.agent.load_state_dict(other_mac.agent.state_dict())

    def cuda(self) -> None:
        self.agent.cuda()

    def save_models(self, path: str) -> None:
        torch.save(self.agent.state_dict(), Path(path) / "agent.th")

    def load_models(self, path: str) -> None:
        state = torch.load(Path(path) / "agent.th", map_location="cpu", weights_only=True)
        self.agent.load_state_dict(state)

    def _run(self, network, batch) -> torch.Tensor:
        """A network of the agents' kind on every step from fresh memory: (B, T, N, A)."""
        return unroll_network(network, self._build_sequence_inputs(batch), Packing.of(batch)).transpose(0, 1)

    def _build_agents(self, input_shape: int) -> None:
        build = resolve("agent", self.args.agent, agent_REGISTRY)
        self.agent = share_parameters(lambda: build(input_shape, self.args), self.args.agent_groups)

    def _build_inputs(self, batch, t: int) -> torch.Tensor:
        """What the agents see at step t: observation, last action, own id. (B * N, I)"""
        bs = batch.batch_size
        inputs = [batch["obs"][:, t]]
        if self.args.obs_last_action:
            onehot = batch["actions_onehot"][:, t - 1] if t > 0 else torch.zeros_like(batch["actions_onehot"][:, t])
            inputs.append(onehot)
        if self.args.obs_agent_id:
            inputs.append(torch.eye(self.n_agents, device=batch.device).expand(bs, -1, -1))
        return torch.cat(inputs, dim=-1).flatten(0, 1)

    def _build_sequence_inputs(self, batch) -> torch.Tensor:
        """`_build_inputs` for all steps at once: (T, B, N, I)."""
        if type(self)._build_inputs is not BasicMAC._build_inputs:
            steps = [self._build_inputs(batch, t) for t in range(batch.max_seq_length)]
            return torch.stack(steps).unflatten(1, (batch.batch_size, self.n_agents))
        return sequence_inputs(batch, self.args)

    def _get_input_shape(self, scheme) -> int:
        return sequence_input_size(scheme, self.args)

    def _step_is_overridden(self) -> bool:
        cls = type(self)
        same_step = cls.forward is BasicMAC.forward and cls._build_inputs is BasicMAC._build_inputs
        return not same_step and cls._build_sequence_inputs is BasicMAC._build_sequence_inputs

    def _to_output(self, outputs: torch.Tensor, avail_actions: torch.Tensor, test_mode: bool) -> torch.Tensor:
        """Logits become policies over the available actions, mixed with epsilon of uniform play outside of tests."""
        if self.agent_output_type != "pi_logits":
            return outputs
        avail = avail_actions > 0
        policy = F.softmax(outputs.masked_fill(~avail, -1e10), dim=-1)
        if not test_mode:
            epsilon = self.action_selector.epsilon
            policy = (1 - epsilon) * policy + epsilon / avail.sum(dim=-1, keepdim=True).clamp(min=1)
        return policy.masked_fill(~avail, 0.0)
