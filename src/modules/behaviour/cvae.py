"""A conditional variational autoencoder of whole episodes, with one Gaussian latent that all agents share.

The replay is a mixture of past joint policies. Which of them played an episode is one hidden fact for all agents and
steps: p(a | tau) = E_{z ~ N(0, I)} prod_{t,i} beta_i(a_it | tau_it, z). (Sohn et al. 2015; Kingma & Welling 2014.)
The posterior q(z | tau, a) reads the whole episode, its actions included: at its mean, `log_probs` is the policy that
played this episode, as far as `kl_weight` allows, not a prediction from the past.
"""

import torch
import torch.nn.functional as F
from torch import nn

from modules.behaviour.cloning import RecurrentPolicy, check_episodes, without_padding
from utils.linear import Linear
from utils.shapes import check_shape


class JointCVAE(nn.Module):
    def __init__(self, input_shape: int, args):
        super().__init__()
        cfg = args.behaviour
        self.n_actions, self.samples = args.n_actions, cfg.samples
        self.encoder_fc = Linear(input_shape + args.n_actions, cfg.hidden_dim)
        self.encoder_rnn = nn.GRU(cfg.hidden_dim, cfg.hidden_dim)
        self.mean_logvar = Linear(cfg.hidden_dim, 2 * cfg.latent_dim)
        self.latent_fc = Linear(cfg.latent_dim, cfg.hidden_dim, bias=False)  # the first layer has one
        self.policy = RecurrentPolicy(input_shape, cfg.hidden_dim, args.n_actions)

    def forward(
        self, inputs: torch.Tensor, avail: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Shapes as in `modules.behaviour`; log-probabilities (K, B, T, N, A) under K = `samples` draws of z."""
        mean, logvar = self.encode(inputs, avail, actions, mask)
        noise = torch.randn(self.samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        return self.decode(inputs, avail, mask, mean + (0.5 * logvar).exp() * noise), (mean, logvar)

    def log_probs(
        self, inputs: torch.Tensor, avail: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """log beta_i(a | tau_i, E_q[z]), (B, T, N, A)."""
        mean, _ = self.encode(inputs, avail, actions, mask)
        return self.decode(inputs, avail, mask, mean.unsqueeze(0)).squeeze(0)

    def encode(
        self, inputs: torch.Tensor, avail: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The posterior's mean and logarithm of the variance, (B, L) each."""
        check_episodes(inputs, avail, actions, mask)
        T, B, N, _ = inputs.shape
        taken = F.one_hot(actions.squeeze(-1), self.n_actions).to(inputs.dtype).transpose(0, 1)
        x = F.relu(self.encoder_fc(without_padding(torch.cat([inputs, taken], dim=-1), mask)))  # (T, B, N, H)
        h, _ = self.encoder_rnn(x.view(T, B * N, -1))
        h = h.view(T, B, N, -1).mean(dim=2)  # (T, B, H)
        played = mask.transpose(0, 1).to(h.dtype)  # (T, B, 1)
        mean, logvar = self.mean_logvar((h * played).sum(dim=0) / played.sum(dim=0).clamp(min=1)).chunk(2, dim=-1)
        return mean, logvar

    def decode(self, inputs: torch.Tensor, avail: torch.Tensor, mask: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (K, B, T, N, A) of the agents' actions under the latents z (K, B, L)."""
        check_shape("z", z, (None, inputs.shape[1], self.latent_fc.in_features))
        return self.policy(without_padding(inputs, mask), avail, self.latent_fc(z))
