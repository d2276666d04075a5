"""Models of the behaviour policy that filled the replay, for offline data and wherever its probabilities are needed.

Built as `model(input_shape, args)` with `args.n_actions` and a block `args.behaviour`. All are called alike, with

    inputs (T, B, N, I): what the agents see, as the controller builds it;   avail (B, T, N, A);
    actions (B, T, N, 1);   mask (B, T, 1), 1 on steps that were played; T is the same in all four.

`log_beta, posterior = model(inputs, avail, actions, mask)` is for training, by `objectives.behaviour.model_loss`:
log_beta (K, B, T, N, A) under K latents drawn from the episodes' posterior, a pair (mean, logvar) of (B, L); a model
without latents has K = 1 and None. `model.log_probs(inputs, avail, actions, mask)` is for use: (B, T, N, A), as close
to the policy as the model gets. Both are -inf where an action is unavailable. Gradients flow into the model alone.
"""

from types import SimpleNamespace

from modules.behaviour.cloning import BehaviourCloning
from modules.behaviour.cvae import JointCVAE

REGISTRY = {"bc_rnn": BehaviourCloning, "cvae_joint": JointCVAE}


def build_model(input_shape: int, n_actions: int, cfg):
    """The model that the block `behaviour` asks for; None where it asks for none."""
    if cfg.source not in REGISTRY:
        return None
    return REGISTRY[cfg.source](input_shape, SimpleNamespace(n_actions=n_actions, behaviour=cfg))
