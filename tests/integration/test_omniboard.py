"""A run in the real Omniboard, seen by a real browser: `npm install --prefix tests/omniboard --ignore-scripts` first.

With OMNIBOARD_PICTURE=docs/pictures/omniboard.png in the environment, the picture is kept there.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from helpers import run_main

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/omniboard"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
METRICS = ("gate_weight_independent", "test_return_mean")

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
    pytest.mark.skipif(
        not (HERE / "node_modules/omniboard").exists(),
        reason="Omniboard is not installed: npm install --prefix tests/omniboard --ignore-scripts",
    ),
]


@pytest.fixture
def omniboard(mongo_url):
    """Omniboard's address, over the database."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        ["node", HERE / "node_modules/omniboard/dist/start.js"],
        env={**os.environ, "MONGO_URI": mongo_url, "PORT": f"{port}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/sacred"
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/api/v1/Runs", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, "Omniboard has ended"
            assert time.monotonic() < end, "Omniboard does not answer"
            time.sleep(0.2)
    yield address
    process.terminate()
    process.wait(10)


def test_a_run_and_its_curve_can_be_read(mongo_url, omniboard, tmp_path, monkeypatch):
    monkeypatch.setenv("MONGO_URL", mongo_url)
    options = ("t_max=4000", "rnn_hidden_dim=16", "test_interval=500", "log_interval=500", "learner_log_interval=500")
    options += ("test_nepisode=8", "use_cuda=False", "seed=7", f"local_results_path={tmp_path}")
    game = ("--config=greedy_qmix", "--env-config=greed_games", "with", "env_args.game=decoy")
    assert run_main(*game, *options) == 0

    picture = Path(os.environ.get("OMNIBOARD_PICTURE") or tmp_path / "omniboard.png")
    command = ["node", HERE / "look.js", omniboard, CHROMIUM, picture, *METRICS]
    looked = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert looked.returncode == 0, looked.stderr
    seen = json.loads(looked.stdout)
    assert seen["failed"] == []
    row = [cell.strip() for cell in seen["row"]]
    assert {"1", "greed_is_good", "train", "COMPLETED"} <= set(row)
    assert sorted(seen["legend"]) == sorted(METRICS)
    written = json.loads((tmp_path / "sacred/1/metrics.json").read_text())
    drawn = {one["name"].removesuffix(".unsmoothed"): one for one in seen["curves"]}
    for name in METRICS:
        assert drawn[name]["x"] == written[name]["steps"]
        assert drawn[name]["y"] == pytest.approx(written[name]["values"])
    assert picture.stat().st_size > 10_000
