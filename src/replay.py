"""Command line: films of what a trained model does. See --help."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from config.schema import defaults
from utils.arguments import Parser
from utils.checkpoints import open_run
from utils.differences import LATER
from utils.errors import RunFailure, UserError
from utils.logging import get_logger

HELP = """Film greedy episodes of a trained model: what happens, and beside it what the agents' networks say.

  python src/replay.py RUN [--episodes=N] [--out=FILE] [--seed=N] [--step=N] [--fps=X] [--results=DIR]

  RUN                 a token (the name of a folder in results/models), the path of such a folder, or the record of a
                      run that saved its model (results/sacred/1)
  --episodes=N        how many (1)
  --out=FILE          .gif, or .mp4 if ffmpeg is installed (results/replays/TOKEN.gif)
  --seed=N            of the environment, for other episodes (that of the run's tests)
  --step=N            the model nearest to this step of training (the newest)
  --fps=X             frames per second (4)
  --results=DIR       where the folders models and checkpoints are (results)

Examples
  python src/replay.py greedy_qmix__2026-11-22_10-34-38
  python src/replay.py results/sacred/3 --episodes=3 --seed=7 --out=battle.mp4
  python src/main.py --config=qmix --env-config=smax with checkpoint_path=results/models/TOKEN evaluate=True render=True

Train with save_model=True. StarCraft II saves replays of its own, which the game shows; so may your environment, or it
has a method `scene` (docs/reports.md).

Exit code: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

LIMITS = {"episodes": (1, 10_000), "seed": (0, 2_000_000_000), "step": (0, 10**15), "fps": (0.1, 100)}


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    sys.path.append(os.getcwd())  # where plug-ins of the user's own lie
    if {"-h", "--help"} & set(argv[1:]):
        print(HELP, end="")
        return 0
    parser = Parser()
    parser.add_argument("run")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--step", type=int, default=0)
    parser.add_argument("--fps", type=float, default=4.0)
    parser.add_argument("--results", type=Path, default=Path("results"))
    try:
        options = parser.parse_args(argv[1:])
        for name, (least, most) in LIMITS.items():
            value = getattr(options, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"--{name}={value}: give a number from {least:,} to {most:,}")
        config, name = find(options.run, options.results)
        if options.seed is not None:
            config["seed"] = config["env_args"]["seed"] = options.seed
        config |= {"load_step": options.step}
        out = options.out or options.results / "replays" / f"{name}.gif"
        from run import watch  # torch and the environments load only when there is something to play

        print("\n".join(watch(config, out, options.episodes, options.fps, get_logger())))
    except (UserError, RunFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailure) else 2
    except KeyboardInterrupt:
        return 130
    return 0


def find(place: str, results: Path) -> tuple[dict[str, Any], str]:
    """The configuration that plays a run's model, and a name for its film.

    Raises:
        UserError: there is no such run, or it has saved no model.
    """
    folder = Path(place)
    if (folder / "run.json").is_file():
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a whole record of a run ({type(error).__name__}: {error})") from None
        models = _models(folder.resolve())
        return _complete(config, models), models.name
    if not folder.is_dir():
        folder = results / "models" / place
    if not folder.is_dir():
        home = results / "models" if Path(place).name == place else Path(place).parent
        near = sorted(path.name for path in home.iterdir()) if home.is_dir() else []
        hint = f"{home} holds {', '.join(near[-5:])}" if near else f"there is nothing in {home}"
        raise UserError(f"{place}: no such run; {hint} (runs save models with save_model=True)")
    found = open_run(folder.parent.parent / "checkpoints" / folder.name)
    if found is None:
        raise UserError(
            f"{folder}: its configuration is not in {folder.parent.parent / 'checkpoints' / folder.name} (runs of "
            "several seeds at once, or that ended before a checkpoint, leave none); film it by the run's command "
            f"and seeds=1 evaluate=True render=True checkpoint_path={folder}"
        )
    return _complete(found.description["config"], folder), folder.name


def _models(record: Path) -> Path:
    """The folder of the models of the run with this record, results/sacred/<id>."""
    results = record.parent.parent
    for folder in sorted((results / "models").iterdir()) if (results / "models").is_dir() else []:
        run = open_run(results / "checkpoints" / folder.name)
        if run is not None and run.description["sacred_id"] == record.name:
            return folder
    raise UserError(
        f"{record}: no model of this run is known in {results / 'models'}; train with save_model=True, or name the "
        f"model (python src/replay.py {results / 'models'}/TOKEN)"
    )


def _complete(config: dict[str, Any], models: Path) -> dict[str, Any]:
    """The configuration to play with: keys that came into being after the run have their defaults.

    One environment is enough; its first episode is the first test's, behind those that the others were trained on.
    """
    config = {**defaults(), **config}
    for key, before in LATER.items():
        block, _, name = key.rpartition(".")
        if block in config:
            config[block].setdefault(name, before)
    if config["env_args"].get("seed") is not None:
        config["env_args"]["seed"] += config["batch_size_run"] - 1
    beginning = {"checkpoint_path": f"{models}", "resume": "", "offline": False, "save_dataset": "", "render": False}
    return {**config, **beginning, "batch_size_run": 1, "use_cuda": False}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
