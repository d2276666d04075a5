"""Parts that go wrong, to see what the command line makes of it."""

import numpy as np
import torch
from my_pymarl_parts import CorridorEnv

from learners.q_learner import QLearner
from runners.episode_runner import EpisodeRunner


class RaisingLearner(QLearner):
    """Fails in its third update."""

    updates = 0

    def train(self, batch, t_env, episode_num):
        super().train(batch, t_env, episode_num)
        self.updates += 1
        if self.updates == 3:
            raise RuntimeError("the third update went wrong")


class InterruptedLearner(QLearner):
    """Behaves as if Ctrl-C had been pressed in its third update."""

    updates = 0

    def train(self, batch, t_env, episode_num):
        super().train(batch, t_env, episode_num)
        self.updates += 1
        if self.updates == 3:
            raise KeyboardInterrupt


class GreedyForMemoryLearner(QLearner):
    """Asks for more memory than any machine has in its third update."""

    updates = 0

    def train(self, batch, t_env, episode_num):
        super().train(batch, t_env, episode_num)
        self.updates += 1
        if self.updates == 3:
            torch.empty(10**15)


class NanLearner(QLearner):
    """Its own term turns into NaN in the third update."""

    updates = 0

    def objective(self, batch):
        objective = super().objective(batch)
        self.updates += 1
        if self.updates == 3:
            objective.terms["entropy"] = objective.loss * torch.nan
            objective.loss = objective.loss + objective.terms["entropy"]
        return objective


class NanEnv(CorridorEnv):
    """Pays NaN in its tenth episode and later."""

    episodes = 0

    def reset(self):
        self.episodes += 1
        return super().reset()

    def step(self, actions):
        reward, terminated, info = super().step(actions)
        return (np.nan if self.episodes >= 10 else reward), terminated, info


class NanRunner(EpisodeRunner):
    """Hands over NaN as rewards of its tenth episode and later: whoever collects episodes otherwise may not check."""

    episodes = 0

    def run(self, test_mode=False):
        batch = super().run(test_mode)
        self.episodes += not test_mode
        if self.episodes >= 10:
            batch["reward"][:, 0] = torch.nan
        return batch
