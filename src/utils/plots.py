"""Pictures of a run."""

from pathlib import Path

PANELS = {  # title -> the statistics drawn in it, each with its label
    "win rate": {"test_battle_won_mean": "test", "battle_won_mean": "training"},
    "return": {"test_return_mean": "test", "return_mean": "training"},
    "gate weight": {"gate_weight_independent": "independent head", "gate_weight_cooperative": "cooperative head"},
}

HEADS = {"independent": "C0", "cooperative": "C1"}
GATE_PANELS = {  # title -> statistics, `{}` is a head's name
    "weight of each head": "gate_weight_{}",
    "conservative gap": "gap_{}",
    "value against realised return": "value_{}",
    "value above what greedy play earned": "excess_{}",
    "multiplier": "multiplier_{}",
    "TD loss": "td_loss_{}",
}


def plot_learning_curve(stats: dict[str, list[tuple[int, float]]], title: str, path: Path, unit: str) -> Path | None:
    """Draw win rate, return and gate weight over time, as far as they were logged.

    Args:
        stats: name -> [(t, value), ...] as in `Logger.stats`.
        unit: what t counts, such as "environment steps".

    Returns:
        The picture's path, or None if nothing was logged.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    panels = {name: {k: v for k, v in lines.items() if k in stats} for name, lines in PANELS.items()}
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False, layout="constrained")
    for axis, (name, lines) in zip(axes[0], panels.items(), strict=True):
        for key, label in lines.items():
            steps, values = zip(*stats[key], strict=True)
            is_training = label == "training"
            axis.plot(steps, values, label=label, lw=1.2 if is_training else 2, alpha=0.6 if is_training else 1)
        if name != "return":
            axis.set_ylim(-0.02, 1.02)
        axis.set(title=name, xlabel=unit)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def plot_gate(stats: dict[str, list[tuple[int, float]]], profile, title: str, path: Path, unit: str) -> Path | None:
    """Draw what the gate saw and did: its statistics over time, and the last batch's gaps.

    Args:
        stats: name -> [(t, value), ...] as in `Logger.stats`.
        profile: gaps (B, T, N) of the agents' values, (B, T, 1) of the team's, and mask (B, T, 1); None: no batch yet.
        unit: what t counts.

    Returns:
        The picture's path, or None if the learner logged no gate.
    """
    if profile is None or "gate_weight_independent" not in stats:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    panels = {name: key for name, key in GATE_PANELS.items() if key.format("independent") in stats}
    disagree = stats.get("heads_disagree")
    n_panels = len(panels) + (disagree is not None) + 2
    columns = 4
    rows = -(-n_panels // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    axes = list(grid.flat)
    for axis in axes[n_panels:]:
        axis.remove()
    over_time, by_step, by_agent = axes[: n_panels - 2], axes[n_panels - 2], axes[n_panels - 1]
    for axis, (name, key) in zip(over_time, panels.items(), strict=False):
        for head, colour in HEADS.items():
            axis.plot(*zip(*stats[key.format(head)], strict=True), color=colour, label=f"{head} head")
        if key == "value_{}":
            axis.plot(*zip(*stats["realised_return"], strict=True), "k:", label="realised return")
        if key == "gate_weight_{}":
            axis.set_ylim(-0.02, 1.02)
        axis.set(title=name, xlabel=unit)
        axis.legend(fontsize=7)
    if disagree is not None:
        over_time[-1].plot(*zip(*disagree, strict=True), color="C2")
        over_time[-1].set(title="share of states in which the heads disagree", xlabel=unit)
        over_time[-1].set_ylim(-0.02, 1.02)
    for axis in over_time:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))

    agents, team, mask = (tensor.detach().float().cpu() for tensor in profile)
    played = mask.sum(dim=0).clamp(min=1)  # (T, 1)
    by_step.plot((agents.mean(dim=2, keepdim=True) * mask).sum(dim=0) / played, color=HEADS["independent"])
    by_step.plot((team * mask).sum(dim=0) / played, color=HEADS["cooperative"])
    by_step.set(title="gap over the steps of an episode", xlabel="step")
    per_agent = (agents * mask).sum(dim=(0, 1)) / mask.sum()
    by_agent.bar(range(len(per_agent)), per_agent, color=HEADS["independent"])
    by_agent.axhline(float((team * mask).sum() / mask.sum()), color=HEADS["cooperative"], label="team")
    by_agent.set(title="gap of each agent", xlabel="agent", xticks=range(len(per_agent)))
    by_agent.legend(fontsize=7)
    for axis in axes[:n_panels]:
        axis.grid(alpha=0.3)
    figure.suptitle(f"The gate of {title}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
