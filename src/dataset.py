"""Command line: episodes in files, for learning offline. See --help."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from doctor import read_config
from utils.arguments import Parser
from utils.errors import RunFailure, UserError
from utils.logging import format_table, get_logger
from utils.memory import format_bytes
from utils.registry import lazy

HELP = """Record episodes in a file that any learner trains from, or say what such a file holds.

  python src/dataset.py FILE --config=ALG --env-config=ENV [--episodes=N] [--uniform] [with KEY=VALUE ...]
  python src/dataset.py FILE

  FILE                an HDF5 file that does not exist yet; alone, one that is checked and described
  --config=ALG        as for src/main.py
  --env-config=ENV    likewise
  --episodes=N        how many (1000)
  --uniform           all available actions are equally likely; otherwise the model of checkpoint_path plays
  with KEY=VALUE      overrides, as for src/main.py

A model explores as it did when it was saved; epsilon_start and epsilon_finish set another share of random play.
Training writes what it collects with save_dataset=FILE. docs/datasets.md describes the format.

Examples
  python src/dataset.py uniform.h5 --config=qmix --env-config=greed_games --uniform with env_args.game=decoy
  python src/dataset.py medium.h5 --config=qmix --env-config=smax with checkpoint_path=results/models/TOKEN
  python src/main.py --config=qmix --env-config=smax with save_dataset=replay.h5
  python src/main.py --config=cql_qmix --env-config=smax with offline=True dataset=replay.h5 t_max=20000

Exit code: 0 done, 1 failed, 2 bad input, 130 interrupted (nothing is left behind).
"""
UNIFORM = ("epsilon_start=1.0", "epsilon_finish=1.0")


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    sys.path.append(os.getcwd())  # where plug-ins of the user's own lie
    if {"-h", "--help"} & set(argv[1:]):
        print(HELP, end="")
        return 0
    try:
        path, config, episodes = _read(argv[1:])
        if config is not None:
            from run import record  # torch and the environments load only when there is something to play

            record(config, path, episodes, get_logger())
        print(describe(path))
    except (UserError, RunFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailure) else 2
    except KeyboardInterrupt:
        return 130
    return 0


def describe(path: str) -> str:
    """What a file holds, all of which is read and checked, as a table."""
    found = lazy("components.dataset:check_dataset")(path)
    sizes = f"{found['n_agents']} agents, {found['n_actions']} actions"
    shapes = f"observations of {found['obs_shape']}, state of {found['state_shape']}"
    rows = [
        ("environment", f"{found['env']} {found['env_args']}"),
        ("sizes", f"{sizes}, {shapes}, up to {found['episode_limit']} steps"),
        ("episodes", f"{found['episodes']:,} of {found['transitions'] / found['episodes']:.1f} steps in the mean"),
        ("return", f"{found['return_mean']:.3f} (deviation {found['return_std']:.3f})"),
        ("return between", f"{found['return_min']:.3f} and {found['return_max']:.3f}"),
        *((f"policy: {key}", f"{value}") for key, value in json.loads(found["policy"]).items()),
        ("seed", f"{found['seed']}"),
        ("recorded", f"{found['created']}"),
        ("size", format_bytes(Path(path).stat().st_size)),
    ]
    return format_table(rows, f"{path}: whole")


def _read(argv: list[str]) -> tuple[str, dict[str, Any] | None, int]:
    """The file, the configuration of who plays (None: the file is to be described), and how many episodes."""
    parser = Parser()
    parser.add_argument("file", nargs="?")
    for flag in ("--config", "--env-config"):
        parser.add_argument(flag)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--uniform", action="store_true")
    start = argv.index("with") if "with" in argv else len(argv)
    options, overrides = parser.parse_args(argv[:start]), argv[start:]
    if options.file is None:
        raise UserError(
            "command line: which file? python src/dataset.py FILE --config=ALG --env-config=ENV; see --help"
        )
    if not (options.config or options.env_config or overrides or options.uniform):
        return options.file, None, 0
    if options.episodes < 1:
        raise UserError(f"command line: --episodes={options.episodes}: at least one")
    if Path(options.file).exists():
        raise UserError(f"{options.file}: already exists; name another file, or remove this one")
    if options.uniform:
        overrides = [*(overrides or ["with"]), *UNIFORM]
    config = read_config(options.config, options.env_config, overrides)
    if options.uniform == bool(config["checkpoint_path"]):
        raise UserError(
            "command line: who plays? Either --uniform, or the model of checkpoint_path=results/models/TOKEN"
        )
    for key in ("offline", "save_dataset"):
        if config[key]:
            raise UserError(f"{key}={config[key]!r}: this command only plays; leave {key} out")
    return options.file, config, options.episodes


if __name__ == "__main__":
    sys.exit(main(sys.argv))
