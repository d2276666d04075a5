"""Folders of saved models: results/models/<token>/<t_env>/ with what the learner writes, and `model.json` beside it.

That file says what the model is, and has the checksums of the others.
"""

import json
import pickle
import shutil
from pathlib import Path

from utils.checkpoints import checksum_of
from utils.errors import UserError
from utils.titles import map_of

DESCRIPTION = "model.json"


def describe(args) -> dict:
    """What a model was made for: another run can load it if all of this agrees."""
    return {
        "learner": args.learner,
        "mac": args.mac,
        "agent": args.agent,
        "agent_groups": args.agent_groups,
        "mixer": args.mixer,
        "env": args.env,
        "map": map_of(args.env_args),
        "n_agents": args.n_agents,
        "n_actions": args.n_actions,
        "obs_shape": args.obs_shape,
        "state_shape": args.state_shape,
    }


def save(learner, folder: Path, t_env: int, args) -> Path:
    """Save the learner's models below the run's model folder; returns their folder.

    Raises:
        OSError: they cannot be written; nothing half-written is left.
    """
    path, beside = folder / str(t_env), folder / f"{t_env}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        learner.save_models(str(beside))
        files = {file.name: checksum_of(file) for file in sorted(beside.iterdir()) if file.is_file()}
        (beside / DESCRIPTION).write_text(json.dumps({**describe(args), "files": files}, indent=2) + "\n")
        shutil.rmtree(path, ignore_errors=True)
        beside.rename(path)  # a folder named by its step is whole
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(f"{path}: {error}") from error
    return path


def find(checkpoint_path: str, load_step: int) -> tuple[Path, int]:
    """The folder of the model nearest to `load_step` (0: the newest) and its step.

    Raises:
        UserError: there is no such folder, or no model in it.
    """
    folder = Path(checkpoint_path)
    if not folder.is_dir():
        near = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
        hint = f"; {folder.parent} holds {', '.join(near[-5:])}" if near else ""
        raise UserError(f"checkpoint_path={checkpoint_path!r}: no such folder{hint}")
    steps = sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit())
    if not steps:
        raise UserError(
            f"checkpoint_path={checkpoint_path!r}: holds no models; give the folder results/models/<token>, "
            f"whose subfolders are named by steps"
        )
    step = steps[-1] if load_step == 0 else min(steps, key=lambda s: abs(s - load_step))
    return folder / str(step), step


def load(learner, path: Path, args) -> None:
    """Load models into the learner.

    Raises:
        UserError: they are damaged, were made by another algorithm, for another environment, or do not fit the
            networks.
    """
    expected = describe(args)
    if (path / DESCRIPTION).exists():  # PyMARL writes none
        try:
            found = json.loads((path / DESCRIPTION).read_bytes())
            files = dict(found.get("files", {}))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"checkpoint_path: {path / DESCRIPTION} is damaged: {error}") from error
        wrong = [f"{k} {found.get(k)!r} (this run: {v!r})" for k, v in expected.items() if found.get(k) != v]
        if wrong:
            raise UserError(f"checkpoint_path: {path} holds another model: {'; '.join(wrong)}")
        for name, checksum in files.items():
            _check(path / name, checksum)
    try:
        learner.load_models(str(path))
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"checkpoint_path: {path} does not fit {args.name} on {args.env} "
            f"({args.n_agents} agents, {args.n_actions} actions, observations of {args.obs_shape}): {reason}"
        ) from error


def _check(file: Path, checksum: str) -> None:
    try:
        whole = checksum_of(file) == checksum
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint_path: {file} cannot be read: {error}; load another step (load_step)") from error
    if not whole:
        raise UserError(f"checkpoint_path: {file} is not what was saved; load another step (load_step), or a copy")
