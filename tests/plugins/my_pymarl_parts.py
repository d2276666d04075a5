"""Other parts as people write them for PyMARL: an environment, a controller, a mixer and a runner."""

import numpy as np
import torch as th
import torch.nn as nn

from components.episode_buffer import EpisodeBatch
from controllers.basic_controller import BasicMAC
from envs.multiagentenv import MultiAgentEnv


class CorridorEnv(MultiAgentEnv):
    """Agents walk along corridors of their own; the team is paid when all stand at the far end. Time may run out."""

    def __init__(self, length, seed, n_agents=2):
        self.length = length
        self.n_agents = n_agents
        self.episode_limit = 2 * length
        self.rng = np.random.RandomState(seed)
        self.places = None

    def reset(self):
        self.steps = 0
        self.places = self.rng.randint(0, self.length - 1, size=self.n_agents)
        return self.get_obs(), self.get_state()

    def step(self, actions):
        moves = np.array([int(a) for a in actions]) - 1
        self.places = np.clip(self.places + moves, 0, self.length - 1)
        self.steps += 1
        won = bool((self.places == self.length - 1).all())
        info = {"battle_won": won}
        if won:
            return 10.0, True, info
        if self.steps >= self.episode_limit:
            info["episode_limit"] = True
            return 0.0, True, info
        return -0.1, False, info

    def get_obs(self):
        return [self.get_obs_agent(i) for i in range(self.n_agents)]

    def get_obs_agent(self, agent_id):
        return np.eye(self.length, dtype=np.float32)[self.places[agent_id]]

    def get_obs_size(self):
        return self.length

    def get_state(self):
        return np.concatenate(self.get_obs())

    def get_state_size(self):
        return self.length * self.n_agents

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(i) for i in range(self.n_agents)]

    def get_avail_agent_actions(self, agent_id):
        return [int(self.places[agent_id] > 0), 1, int(self.places[agent_id] < self.length - 1)]

    def get_total_actions(self):
        return 3

    def render(self):
        pass

    def close(self):
        pass

    def seed(self):
        return 0

    def save_replay(self):
        pass

    def get_stats(self):
        return {}


class TwoLooksMAC(BasicMAC):
    """Agents see their observation of this step and of the one before, and neither their number nor actions."""

    def _build_inputs(self, batch, t):
        bs = batch.batch_size
        before = th.zeros_like(batch["obs"][:, t]) if t == 0 else batch["obs"][:, t - 1]
        inputs = [batch["obs"][:, t], before]
        return th.cat([x.reshape(bs * self.n_agents, -1) for x in inputs], dim=1)

    def _get_input_shape(self, scheme):
        return 2 * scheme["obs"]["vshape"]


class WeighedSum(nn.Module):
    """Q_tot is a sum with learned positive weights."""

    def __init__(self, args):
        super().__init__()
        self.n_agents = args.n_agents
        self.weights = nn.Parameter(th.zeros(args.n_agents))

    def forward(self, agent_qs, states):
        bs = agent_qs.size(0)
        agent_qs = agent_qs.reshape(-1, self.n_agents)
        return (agent_qs * th.exp(self.weights)).sum(dim=1).view(bs, -1, 1)


class PlainRunner:
    """PyMARL's runner interface with one environment."""

    def __init__(self, args, logger):
        self.args = args
        self.logger = logger
        self.batch_size = self.args.batch_size_run
        assert self.batch_size == 1
        self.env = CorridorEnv(**self.args.env_args)
        self.episode_limit = self.env.episode_limit
        self.t = 0
        self.t_env = 0
        self.returns = {True: [], False: []}

    def setup(self, scheme, groups, preprocess, mac):
        self.new_batch = lambda: EpisodeBatch(
            scheme,
            groups,
            self.batch_size,
            self.episode_limit + 1,
            preprocess=preprocess,
            device=self.args.device,
        )
        self.mac = mac

    def get_env_info(self):
        return self.env.get_env_info()

    def save_replay(self):
        self.env.save_replay()

    def close_env(self):
        self.env.close()

    def reset(self):
        self.batch = self.new_batch()
        self.env.reset()
        self.t = 0

    def observe(self):
        seen = {
            "state": [self.env.get_state()],
            "avail_actions": [self.env.get_avail_actions()],
            "obs": [self.env.get_obs()],
        }
        self.batch.update(seen, ts=self.t)

    def run(self, test_mode=False):
        self.reset()
        terminated = False
        episode_return = 0
        self.mac.init_hidden(batch_size=self.batch_size)
        while not terminated:
            self.observe()
            actions = self.mac.select_actions(self.batch, t_ep=self.t, t_env=self.t_env, test_mode=test_mode)
            reward, terminated, env_info = self.env.step(actions[0])
            episode_return += reward
            post_transition_data = {
                "actions": actions,
                "reward": [(reward,)],
                "terminated": [(terminated != env_info.get("episode_limit", False),)],
            }
            self.batch.update(post_transition_data, ts=self.t)
            self.t += 1
        self.observe()
        actions = self.mac.select_actions(self.batch, t_ep=self.t, t_env=self.t_env, test_mode=test_mode)
        self.batch.update({"actions": actions}, ts=self.t)

        if not test_mode:
            self.t_env += self.t
        returns = self.returns[test_mode]
        returns.append(episode_return)
        if test_mode and len(returns) == self.args.test_nepisode:
            self.logger.log_stat("test_return_mean", np.mean(returns), self.t_env)
            returns.clear()
        return self.batch
