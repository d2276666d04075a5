"""A learner as people write them for PyMARL: it uses nothing but what PyMARL offers too.

Q-learning with a mixer whose values of actions outside the data are held down. `caution` is a key of its own.
"""

import copy

import torch as th

from components.episode_buffer import EpisodeBatch
from modules.mixers.qmix import QMixer
from modules.mixers.vdn import VDNMixer


class CautiousLearner:
    def __init__(self, mac, scheme, logger, args):
        self.args = args
        self.mac = mac
        self.logger = logger
        self.params = list(mac.parameters())
        self.last_target_update = 0

        self.mixer = None
        if args.mixer is not None:
            if args.mixer == "vdn":
                self.mixer = VDNMixer()
            elif args.mixer == "qmix":
                self.mixer = QMixer(args)
            else:
                raise ValueError(f"Mixer {args.mixer} not recognised.")
            self.params += list(self.mixer.parameters())
            self.target_mixer = copy.deepcopy(self.mixer)

        self.optimiser = th.optim.RMSprop(params=self.params, lr=args.lr, alpha=args.optim_alpha, eps=args.optim_eps)
        self.target_mac = copy.deepcopy(mac)
        self.log_stats_t = -self.args.learner_log_interval - 1

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int):
        rewards = batch["reward"][:, :-1]
        actions = batch["actions"][:, :-1]
        terminated = batch["terminated"][:, :-1].float()
        mask = batch["filled"][:, :-1].float()
        mask[:, 1:] = mask[:, 1:] * (1 - terminated[:, :-1])
        avail_actions = batch["avail_actions"]

        mac_out = []
        self.mac.init_hidden(batch.batch_size)
        for t in range(batch.max_seq_length):
            mac_out.append(self.mac.forward(batch, t=t))
        mac_out = th.stack(mac_out, dim=1)
        chosen = th.gather(mac_out[:, :-1], dim=3, index=actions).squeeze(3)

        target_out = []
        self.target_mac.init_hidden(batch.batch_size)
        for t in range(batch.max_seq_length):
            target_out.append(self.target_mac.forward(batch, t=t))
        target_out = th.stack(target_out[1:], dim=1)
        target_out[avail_actions[:, 1:] == 0] = -9999999

        following = mac_out.clone().detach()
        following[avail_actions == 0] = -9999999
        best = following[:, 1:].max(dim=3, keepdim=True)[1]
        target_max = th.gather(target_out, 3, best).squeeze(3)

        if self.mixer is not None:
            chosen_tot = self.mixer(chosen, batch["state"][:, :-1])
            target_max = self.target_mixer(target_max, batch["state"][:, 1:])
        else:
            chosen_tot = chosen
        targets = rewards + self.args.gamma * (1 - terminated) * target_max

        td_error = chosen_tot - targets.detach()
        td_mask = mask.expand_as(td_error)
        td_loss = ((td_error * td_mask) ** 2).sum() / td_mask.sum()
        masked = mac_out[:, :-1].masked_fill(avail_actions[:, :-1] == 0, -9999999)
        excess = th.logsumexp(masked, dim=3) - chosen
        caution = (excess * mask).sum() / mask.expand_as(excess).sum()
        loss = td_loss + self.args.caution * caution

        self.optimiser.zero_grad()
        loss.backward()
        grad_norm = th.nn.utils.clip_grad_norm_(self.params, self.args.grad_norm_clip)
        self.optimiser.step()

        if (episode_num - self.last_target_update) / self.args.target_update_interval >= 1.0:
            self._update_targets()
            self.last_target_update = episode_num

        if t_env - self.log_stats_t >= self.args.learner_log_interval:
            self.logger.log_stat("loss", loss.item(), t_env)
            self.logger.log_stat("caution", caution.item(), t_env)
            self.logger.log_stat("grad_norm", grad_norm, t_env)
            self.logger.log_stat("td_error_abs", (td_error.abs() * td_mask).sum().item() / td_mask.sum().item(), t_env)
            self.log_stats_t = t_env

    def _update_targets(self):
        self.target_mac.load_state(self.mac)
        if self.mixer is not None:
            self.target_mixer.load_state_dict(self.mixer.state_dict())
        self.logger.console_logger.info("Updated target network")

    def cuda(self):
        self.mac.cuda()
        self.target_mac.cuda()
        if self.mixer is not None:
            self.mixer.cuda()
            self.target_mixer.cuda()

    def save_models(self, path):
        self.mac.save_models(path)
        if self.mixer is not None:
            th.save(self.mixer.state_dict(), f"{path}/mixer.th")
        th.save(self.optimiser.state_dict(), f"{path}/opt.th")

    def load_models(self, path):
        self.mac.load_models(path)
        self.target_mac.load_models(path)
        if self.mixer is not None:
            self.mixer.load_state_dict(th.load(f"{path}/mixer.th", map_location=lambda storage, loc: storage))
        self.optimiser.load_state_dict(th.load(f"{path}/opt.th", map_location=lambda storage, loc: storage))
