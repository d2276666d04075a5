"""What lies in a folder of results."""

from pathlib import Path

from utils.errors import UserError


def find_runs(path: Path) -> list[Path]:
    """The folders of runs at or below a folder of results, the first run first.

    Raises:
        UserError: there is none.
    """
    if (path / "run.json").exists():
        return [path]
    for pattern in ("*/run.json", "sacred/*/run.json", "**/sacred/*/run.json"):
        if found := [file.parent for file in path.glob(pattern)]:
            return sorted(found, key=lambda run: (run.parent, run.name.zfill(12)))
    raise UserError(f"{path}: holds no runs; give a folder of results (results), or of one run (results/sacred/1)")
