"""Settings of the greedy learner: every option of the method at least once, and batches that follow its heads."""

import torch
from helpers import Episode, make_args
from nested_loops import Networks

# Every setting that both kinds of learner have, so that configs can choose defaults of their own.
SHARED = {
    "optimizer": "rmsprop",
    "lr": 0.002,
    "lr_finish": None,
    "optim_alpha": 0.99,
    "optim_eps": 1e-5,
    "grad_norm_clip": 10,
    "gamma": 0.875,
    "double_q": True,
    "td_lambda": 0.0,
    "target_update_interval": 2,
    "target_update_tau": None,
}
BLOCKS = {
    "heads": {
        "utilities": "shared",
        "act": "shared",
        "reward_independent": "team",
        "shared_experience": 0.0,
        "normalise_loss": False,
    },
    "conservative": {
        "alpha_independent": 0.5,
        "alpha_cooperative": 0.75,
        "op": "lse",
        "temperature": 0.25,
        "joint": "cf",
        "samples": 3,
        "shift_weight": 1.5,
        "coefficient": "fixed",
        "threshold": 0.125,
        "eta": 0.5,
        "l_max": 2.0,
        "coefficient_max": 1000.0,
    },
    "gate": {
        "mode": "direct",
        "metric": "gap",
        "acts_on": "loss",
        "target": "own",
        "op": "max",
        "joint": "auto",
        "realised": "match",
        "min_rows": 1,
        "importance_clip": 50.0,
        "p": 1.5,
        "eps": 0.125,
        "prior_cooperative": 0.5,
        "ema": 0.75,
        "floor": 0.0625,
        "weight_independent": 0.25,
        "eta": 0.5,
        "l_max": 2.0,
        "form": "exp",
        "threshold": None,
    },
    "munchausen": {
        "source": "alt_counterfactual",
        "who": "own",
        "alpha": 0.5,
        "kl": 0.0,
        "tau": 0.25,
        "l0": -0.5,
        "clip": "scaled",
        "bootstrap": "soft",
        "alternative_ema": 0.25,
    },
    "behaviour": {"source": "empirical", "hidden_dim": 7, "latent_dim": 2, "samples": 3, "kl_weight": 0.5, "lr": 0.01},
}
OFF = {"conservative": {"alpha_independent": 0.0, "alpha_cooperative": 0.0}, "munchausen": {"source": "none"}}


def greedy_args(mixer="qmix", **overrides):
    """The settings above, with changes to single keys of blocks, as in gate={"mode": "hard"}, and of the top level."""
    blocks = {name: {**values, **overrides.pop(name, {})} for name, values in BLOCKS.items()}
    return make_args("greedy_qmix", mixer=mixer, **{**SHARED, **overrides}, **blocks)


def fixed(weight_independent, **overrides):
    """A gate of constant weights, and every other term off."""
    gate = {"mode": "fixed", "weight_independent": weight_independent}
    return greedy_args(gate=gate, **OFF, **overrides)


SHORT = (Episode(3, "terminated"), Episode(1, "terminated"), Episode(2, "early"))


def separate(act="global", **blocks):
    """Two networks of utilities for each agent, and a gate that chooses between them."""
    gate = {"acts_on": "none", **blocks.pop("gate", {})}
    heads = {"utilities": "separate", "act": act, **blocks.pop("heads", {})}
    return {"mac": "gated_mac", "heads": heads, "gate": gate, **blocks}


def stored(**blocks):
    return {"behaviour": {"source": "stored"}, **blocks}


def munchausen(**options):
    return {"munchausen": options}


def gated(**options):
    return {"gate": options}


CASES = {
    # The gate on the gaps
    "direct": {},
    "direct, linear, no floor": gated(p=1.0, floor=0.0, eps=0.01),
    "direct, with a prior": gated(prior_cooperative=0.875),
    "direct on penalty": gated(acts_on="penalty"),
    "direct on nothing": gated(acts_on="none"),
    "direct, counterfactual gap": gated(joint="cf"),
    "direct, gap per gain": gated(joint="cf_per_gain"),
    "direct, first-order gap": gated(joint="linear"),
    "direct, log-sum-exp gap": gated(joint="cf", op="lse"),
    "direct, softmax gap": gated(joint="cf", op="softmax"),
    "hard": gated(mode="hard"),
    "hard, counterfactual gap": gated(mode="hard", joint="cf"),
    "lagrange": gated(mode="lagrange"),
    "lagrange, clipped": gated(mode="lagrange", eta=8.0, l_max=0.5),
    "lagrange, gradient": gated(mode="lagrange", form="gradient"),
    "lagrange, threshold": gated(mode="lagrange", threshold=0.5),
    "fixed": gated(mode="fixed"),
    "none": gated(mode="none"),
    "direct, losses in one unit": {"heads": {"normalise_loss": True}},
    "direct on penalty, losses in one unit": {"heads": {"normalise_loss": True}, **gated(acts_on="penalty")},
    # The gate on what was realised
    "over": gated(metric="over"),
    "over, lagrange": gated(metric="over", mode="lagrange"),
    "cert": gated(metric="cert"),
    "cert, hard": gated(metric="cert", mode="hard"),
    "realised": gated(metric="realised"),
    "cert, importance": stored(gate={"metric": "cert", "realised": "is"}),
    "over, clipped importance": stored(gate={"metric": "over", "realised": "is", "importance_clip": 20.0}),
    "td": gated(metric="td"),
    "td, hard": gated(metric="td", mode="hard", prior_cooperative=0.875),  # a tie at first
    "target min": gated(target="min"),
    "target soft": gated(target="soft"),
    "target cert": gated(target="cert"),
    "target cert, importance": stored(gate={"target": "cert", "realised": "is"}),
    # Penalties
    "max penalty": {"conservative": {"op": "max"}},
    "mean penalty": {"conservative": {"op": "uniform"}},
    "softmax penalty": {"conservative": {"op": "softmax"}},
    "penalty to uniform": {"conservative": {"op": "lse_mean"}},
    "penalty to the behaviour": stored(conservative={"op": "lse_beta"}),
    "joint penalty": {"conservative": {"op": "max", "joint": "max"}},
    "weighted penalty": stored(conservative={"joint": "cf_weighted"}),
    "weighted penalty, cloned behaviour": {"behaviour": {"source": "bc_rnn"}, "conservative": {"joint": "cf_weighted"}},
    "weighted penalty to the behaviour": stored(conservative={"joint": "cf_weighted", "op": "lse_beta"}),
    "first-order penalty": {"conservative": {"joint": "linear"}},
    "one penalty": {"conservative": {"alpha_independent": 0.0, "alpha_cooperative": 2.0}},
    "held penalty": {"conservative": {"op": "max", "coefficient": "lagrange"}},
    "held penalty, clipped": {"conservative": {"op": "max", "coefficient": "lagrange", "eta": 9.0, "l_max": 0.25}},
    "held penalty, capped": {"conservative": {"op": "max", "coefficient": "lagrange", "coefficient_max": 0.5}},
    # Munchausen
    "hard bootstrap": munchausen(bootstrap="hard"),
    "hard bootstrap, no double-Q": munchausen(bootstrap="hard") | {"double_q": False},
    "no munchausen": munchausen(source="none"),
    "wide clip": munchausen(l0=-50.0),
    "unscaled clip": munchausen(l0=-1.5, clip="unscaled"),
    "own alternative": munchausen(source="self"),
    "summed over agents": munchausen(who="sum", l0=-2.0),
    "neighbour's confidence": munchausen(who="author", l0=-2.0),
    "what others say": munchausen(source="alt_utility", who="others", l0=-2.0),
    "direct KL": munchausen(kl=0.5),
    "direct KL to itself, no bonus": munchausen(kl=0.5, alpha=0.0, source="self"),
    # Two networks
    "separate": separate(),
    "separate, on penalty": separate(gate={"acts_on": "penalty"}),
    "separate, utility as alternative": separate(munchausen={"source": "alt_utility", "kl": 0.25, "l0": -2.0}),
    "separate, what others say": separate(munchausen={"source": "alt_utility", "who": "others", "l0": -2.0}),
    "separate, what others say of themselves": separate(munchausen={"source": "self", "who": "others", "l0": -2.0}),
    "separate, target": separate(gate={"metric": "cert", "target": "cert", "mode": "hard"}),
    "separate, a head is never measured": separate(gate={"metric": "over", "min_rows": 4}),
    "separate, a head is measured once": separate(gate={"metric": "over", "min_rows": 3}),
    "separate, switch by the gap": separate("agent"),
    "separate, switch by the certificate": separate("agent", gate={"metric": "cert"}),
    "separate, switch before the certificate": separate(
        "agent", gate={"metric": "cert", "min_rows": 1000, "floor": 0.125}
    ),
    "separate, switch by what was realised": separate("agent", gate={"metric": "realised"}),
    "separate, actor by the gap": separate("distil"),
    "separate, actor by the weights": separate("distil", gate={"metric": "over"}),
    "separate, joint penalty": separate(conservative={"op": "max", "joint": "max"}, munchausen={"bootstrap": "hard"}),
    "separate, first-order penalty": separate("cooperative", conservative={"joint": "linear"}),
    # Rewards, behaviour, targets and mixers
    "individual rewards": {"heads": {"reward_independent": "individual"}},
    "individual rewards, realised": {
        "heads": {"reward_independent": "individual"},
        "gate": {"metric": "cert"},
    },
    "stored behaviour": stored(),
    "cloned behaviour": {"behaviour": {"source": "bc_rnn"}, "conservative": {"op": "lse_beta"}},
    "behaviour with a latent": {"behaviour": {"source": "cvae_joint"}, **gated(metric="over", realised="is")},
    "TD(lambda)": {"td_lambda": 0.5},
    "VDN": {"mixer": "vdn"},
    "VDN, mean": {"mixer": "vdn_mean", **gated(joint="linear")},
    "concave": {"mixer": "qmix_concave", **gated(joint="cf_per_gain")},
}


# Those that draw samples are not in the loops.
MORE_CASES = {
    **CASES,
    "sampled penalty": {"conservative": {"joint": "sampled"}, "gate": {"joint": "sampled", "op": "lse"}},
}


def follow(learner, batch, episodes):
    """Half of the steps play the greedy joint action of a head: of one head in one episode, then of the other."""
    generator = torch.Generator().manual_seed(1)
    for t in range(max(episode.length for episode in episodes)):
        networks = Networks(learner.mac, learner.mixer, batch)
        for e, episode in enumerate(episodes):
            if t < episode.length and torch.rand((), generator=generator) < 0.5:
                batch["actions"][e, t, :, 0] = torch.tensor(networks.greedy(e % 2, e, t))
    return batch
