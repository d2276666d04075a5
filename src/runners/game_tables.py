"""The learned values of a small game's joint actions, for games that list their states (`game_states`)."""

import torch

from components.episode_buffer import EpisodeBatch
from envs.vector_env import VectorEnv


def joint_action_batch(env: VectorEnv, path, new_batch) -> EpisodeBatch:
    """Episodes that go down `path` (joint actions) and then take each of the A*A joint actions of two agents.

    Args:
        env: a fresh game with A*A environments.
        new_batch: (episodes, steps) -> EpisodeBatch.

    Returns:
        A*A episodes of len(path) + 1 steps, in row-major order of the last joint action.
    """
    A = env.n_actions
    last = torch.cartesian_prod(torch.arange(A), torch.arange(A))  # (A*A, 2)
    batch = new_batch(A * A, len(path) + 1)
    seen = env.reset()
    for t in range(len(path) + 1):
        actions = torch.tensor(path[t]).expand(A * A, -1) if t < len(path) else last
        batch.update(
            {"obs": seen.obs, "state": seen.state, "avail_actions": seen.avail, "actions": actions.unsqueeze(-1)}, ts=t
        )
        seen = env.step(actions.to(seen.obs.device)).next
    return batch


def format_tables(learner, game_states, make_env, new_batch) -> str:
    """A table per state of the game: learned Q_tot (or each agent's own values) beside what the joint action pays."""
    lines = []
    for state in game_states:
        A = state.payoff.shape[0]
        batch = joint_action_batch(make_env(A * A), state.path, new_batch)
        q, joint = learner.joint_values(batch)
        lines.append(f"state {state.name}: learned values (agent 1 down, agent 2 across) | immediate payoff")
        if joint.shape[-1] == 1:
            table = joint[:, -1, 0].view(A, A)
            for values, payoff in zip(table.tolist(), state.payoff.tolist(), strict=True):
                lines.append("  " + _row(values) + "  |" + _row(payoff))
        else:
            for agent in range(q.shape[2]):
                lines.append(f"  agent {agent + 1}: " + _row(q[0, -1, agent].tolist()))
            lines += ["  payoff:   " + _row(payoff) for payoff in state.payoff.tolist()]
    return "\n".join(lines)


def _row(values) -> str:
    return "".join(f"{value:9.2f}" for value in values)
