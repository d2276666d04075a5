"""The behaviour policy beta that filled the replay: expectations under it, and the losses of models that clone it.

Models give log-probabilities for K samples of a latent variable that all agents share for a whole episode; a model
without one has K = 1. Padded steps are excluded: what stands there has no effect.
"""

import math

import torch

from utils.shapes import check_same_shape, check_shape


def epsilon_greedy_policy(greedy: torch.Tensor, epsilon: float | torch.Tensor, avail: torch.Tensor) -> torch.Tensor:
    """beta(a) = (1 - eps) 1[a = greedy] + eps / |available|: what an epsilon-greedy agent plays.

    Args:
        greedy: (..., 1), index of the best available action.
        epsilon: a number, or one for each row, of the shape of `greedy`.
        avail: (..., A), above 0 where the action may be taken.

    Returns:
        (..., A), exactly 0 where an action is not available. A row without any, as in padding, is 0 throughout.
    """
    check_shape("greedy", greedy, (*avail.shape[:-1], 1))
    if isinstance(epsilon, torch.Tensor) and epsilon.dim() > 0:
        check_same_shape(epsilon=epsilon, greedy=greedy)
    available = avail > 0
    uniform = available / available.sum(dim=-1, keepdim=True)
    best = torch.zeros_like(uniform).scatter(-1, greedy, 1.0)
    return ((1 - epsilon) * best + epsilon * uniform).masked_fill(~available, 0.0)


def expected_value(q: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """E_beta[Q] = sum_a beta(a) Q(a); actions that beta never plays have no effect, whatever their values are.

    With the probabilities that were played this has the mean of Q(a_data) without its sampling noise (Rao-Blackwell).

    Args:
        q, beta: (B, T, N, A); no gradient flows into beta.

    Returns:
        (B, T, N).
    """
    check_same_shape(q=q, beta=beta)
    beta = beta.detach()
    return (beta * q.masked_fill(beta == 0, 0.0)).sum(dim=-1)


def cloning_loss(log_beta: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """-mean log beta(a_i | tau_i) over agents and played steps, in nats: behaviour cloning (Pomerleau 1991).

    Args:
        log_beta: (B, T, N, A). actions: (B, T, N, 1). mask: (B, T, 1).

    Returns:
        A scalar.
    """
    return -episode_log_likelihood(log_beta.unsqueeze(0), actions, mask).sum() / _decisions(actions, mask)


def episode_log_likelihood(log_beta: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log p(a | tau, z_k) = sum_{t,i} log beta(a_it | tau_it, z_k) over the played steps of every episode.

    Args:
        log_beta: (K, B, T, N, A). actions: (B, T, N, 1). mask: (B, T, 1).

    Returns:
        (K, B), in nats.
    """
    check_shape("actions", actions, (*log_beta.shape[1:-1], 1))
    check_shape("mask", mask, (*actions.shape[:2], 1))
    taken = log_beta.gather(-1, actions.expand(len(log_beta), *actions.shape)).squeeze(-1)  # (K, B, T, N)
    return torch.where(mask.bool(), taken, 0.0).sum(dim=(2, 3))


def gaussian_kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, diag exp(logvar)) || N(0, I)) = 1/2 sum_l (mean^2 + exp(logvar) - 1 - logvar).

    Kingma & Welling 2014, appendix B.

    Args:
        mean, logvar: (B, L), one latent for each episode.

    Returns:
        (B,), in nats.
    """
    check_same_shape(mean=mean, logvar=logvar)
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=-1)


def evidence_lower_bound(log_likelihood: torch.Tensor, kl: torch.Tensor, kl_weight: float = 1.0) -> torch.Tensor:
    """E_q log p(a | tau, z) - w KL(q(z | tau, a) || p(z)); with w = 1 it is at most log p(a | tau) of the episode.

    Sohn et al. 2015, with a prior that does not depend on tau; other weights as in Higgins et al. 2017, eq. 4.

    Args:
        log_likelihood: (K, B), given K samples of the posterior q, whose mean estimates E_q.
        kl: (B,).

    Returns:
        (B,), in nats.
    """
    check_shape("kl", kl, (log_likelihood.shape[1],))
    return log_likelihood.mean(dim=0) - kl_weight * kl


def sampled_log_likelihood(log_likelihood: torch.Tensor) -> torch.Tensor:
    """log 1/K sum_k p(a | tau, z_k), an estimate of log p(a | tau) of the episode from K samples of the prior.

    The logarithm of an average is too low in expectation, by less the larger K is (Burda et al. 2016, theorem 1).

    Args:
        log_likelihood: (K, B).

    Returns:
        (B,), in nats.
    """
    check_shape("log_likelihood", log_likelihood, (None, None))
    return log_likelihood.logsumexp(dim=0) - math.log(len(log_likelihood))


def calibration_error(
    log_beta: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor, bins: int = 10
) -> torch.Tensor:
    """sum_m |B_m| / n |accuracy(B_m) - confidence(B_m)| of the likeliest actions, binned by their probabilities.

    Expected calibration error (Guo et al. 2017, eq. 3): 0 if an action that is given probability p as the likeliest is
    played with frequency p. Bin m = 1, ..., M holds the probabilities in ((m - 1)/M, m/M].

    Args:
        log_beta: (B, T, N, A). actions: (B, T, N, 1). mask: (B, T, 1).

    Returns:
        A scalar in [0, 1], without gradient.
    """
    check_shape("actions", actions, (*log_beta.shape[:-1], 1))
    check_shape("mask", mask, (*actions.shape[:2], 1))
    log_confidence, likeliest = log_beta.detach().max(dim=-1)  # (B, T, N)
    confidence = torch.where(mask.bool(), log_confidence.exp(), 0.0)
    correct = (mask.bool() & (likeliest == actions.squeeze(-1))).to(confidence.dtype)
    bin_of = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    excess = confidence.new_zeros(bins).index_add(0, bin_of.flatten(), (correct - confidence).flatten())
    return excess.abs().sum() / _decisions(actions, mask)


def model_loss(
    log_beta: torch.Tensor,
    posterior: tuple[torch.Tensor, torch.Tensor] | None,
    actions: torch.Tensor,
    mask: torch.Tensor,
    kl_weight: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The negative evidence lower bound, in nats per agent and played step; without a latent it is `cloning_loss`.

    Args:
        log_beta: (K, B, T, N, A), of a model in `modules.behaviour`, like the next.
        posterior: mean and logarithm of the variance of the episodes' latents, (B, L) each; None if there are none.
        actions: (B, T, N, 1). mask: (B, T, 1).
        kl_weight: of the KL divergence from the prior, 1 for a bound.

    Returns:
        The loss, a scalar, and what to log, scalars without gradient: `behaviour_log_likelihood` in nats per agent and
        played step, `behaviour_calibration_error` of the average of the K policies, and, if there is a posterior,
        `behaviour_kl` in nats per episode.
    """
    log_likelihood = episode_log_likelihood(log_beta, actions, mask)
    decisions = _decisions(actions, mask)
    average = log_beta.detach().logsumexp(dim=0) - math.log(len(log_beta))
    stats = {
        "behaviour_log_likelihood": log_likelihood.detach().mean(dim=0).sum() / decisions,
        "behaviour_calibration_error": calibration_error(average, actions, mask),
    }
    kl = torch.zeros_like(log_likelihood[0])
    if posterior is not None:
        played = mask.bool().any(dim=1).squeeze(1)  # an episode of padding alone has no latent
        kl = torch.where(played, gaussian_kl(*posterior), 0.0)
        stats["behaviour_kl"] = kl.detach().sum() / played.sum()
    return -evidence_lower_bound(log_likelihood, kl, kl_weight).sum() / decisions, stats


def _decisions(actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How many actions were taken: agents times played steps."""
    return actions.shape[2] * mask.sum()
