"""A folder that looks like StarCraft II and starts the stand-in: `python tests/fake_sc2/install.py DIR`.

Battles on it say nothing about results on the game; it is for trying the pipeline, and for tests and benchmarks.
"""

import sys
from collections.abc import Iterable
from pathlib import Path


def install(folder: Path, maps: Iterable[str]) -> Path:
    """Make the folder, with empty files for these maps. Returns it."""
    binary = folder / "Versions/Base75689/SC2_x64"
    binary.parent.mkdir(parents=True, exist_ok=True)
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve().parent}" "$@"\n')
    binary.chmod(0o755)
    (folder / "Maps/SMAC_Maps").mkdir(parents=True, exist_ok=True)
    for name in maps:
        (folder / f"Maps/SMAC_Maps/{name}.SC2Map").touch()
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} DIR")
    from battle import MAPS

    print(f"Stand-in game installed. Use it with: export SC2PATH={install(Path(sys.argv[1]).resolve(), MAPS)}")
