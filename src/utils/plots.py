"""Pictures of a run."""

from pathlib import Path

PANELS = {  # title -> the statistics drawn in it, each with its label
    "win rate": {"test_battle_won_mean": "test", "battle_won_mean": "training"},
    "return": {"test_return_mean": "test", "return_mean": "training"},
    "gate weight": {"gate_weight_independent": "independent head", "gate_weight_cooperative": "cooperative head"},
}


def plot_learning_curve(stats: dict[str, list[tuple[int, float]]], title: str, path: Path) -> Path | None:
    """Draw win rate, return and gate weight over environment steps, as far as they were logged.

    Args:
        stats: name -> [(t, value), ...] as in `Logger.stats`.

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
        axis.set(title=name, xlabel="environment steps")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
