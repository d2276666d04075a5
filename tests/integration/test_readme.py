"""The README's plug-in example runs as it stands there, and its commands name configs that exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

from config.schema import config_files

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_plug_in_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (command,) = re.findall(r"^python (src/main.py .*hysteretic:.*)$", README, flags=re.MULTILINE)
    (tmp_path / "hysteretic.py").write_text(code)
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments, "t_max=2000", "env_args.repeats=5", "batch_size_run=4"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "return_mean" in done.stdout
    assert (tmp_path / "results" / "sacred" / "1" / "metrics.json").exists()


def test_commands_name_configs_that_exist():
    algs = re.findall(r"--config=(\w+)", README)
    envs = re.findall(r"--env-config=(\w+)", README)
    assert len(algs) > 3
    assert set(algs) <= set(config_files("algs"))
    assert set(envs) <= set(config_files("envs"))


def test_paths_in_the_code_map_exist():
    block = README.split("## Code map")[1].split("```")[1]
    paths = [
        path for line in block.strip().splitlines() for path in re.findall(r"(?:src|tests|benchmarks)/[\w/.]*", line)
    ]
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path).exists(), path
