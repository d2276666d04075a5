"""install_sc2.sh, on small archives made here: nothing is downloaded, and no package is installed."""

import os
import pty
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BINARY = "Versions/Base75689/SC2_x64"
GAME_FILES = {f"StarCraftII/{BINARY}": "the game", "StarCraftII/.build.info": "hidden", "StarCraftII/Maps/own": "a map"}
MAP_FILES = {"SMAC_Maps/3m.SC2Map": "3m", "SMAC_Maps/8m.SC2Map": "8m"}

pytestmark = [
    pytest.mark.skipif(os.uname()[0::4] != ("Linux", "x86_64"), reason="the game is for Linux on x86-64"),
    pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed"),
]


@pytest.fixture
def archives(tmp_path):
    """A folder with both archives, encrypted as the real ones are where `zip` can do that."""
    folder = tmp_path / "archives"
    folder.mkdir()
    make_archive(folder / "SC2.4.10.zip", GAME_FILES)
    make_archive(folder / "SMAC_Maps.zip", MAP_FILES)
    return folder


def make_archive(path: Path, files: dict[str, str]) -> None:
    source = path.with_suffix("")
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    if shutil.which("zip"):
        subprocess.run(["zip", "-qr", "-P", "iagreetotheeula", path, "."], cwd=source, check=True)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in files:
                archive.write(source / name, name)
    shutil.rmtree(source)


@pytest.fixture
def install(tmp_path):
    """Runs install_sc2.sh for the folder `game` of this test, with neither terminal nor network."""

    def run(*options: str | Path, stdin: int = subprocess.DEVNULL, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", ROOT / "install_sc2.sh", *options],
            env=os.environ | {"SC2PATH": str(tmp_path / "parent/game")} | env,
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def game(tmp_path):
    return tmp_path / "parent/game"


def assert_installed(game: Path) -> None:
    assert (game / BINARY).read_text() == "the game"
    assert os.access(game / BINARY, os.X_OK)
    assert (game / ".build.info").read_text() == "hidden"
    assert (game / "Maps/own").read_text() == "a map"
    assert (game / "Maps/SMAC_Maps/3m.SC2Map").read_text() == "3m"
    assert [path.name for path in game.parent.iterdir()] == ["game"]  # no archive and no unpacking folder is left


def test_help_names_every_option(install):
    result = install("--help")
    assert result.returncode == 0
    for option in ("--check", "--offline", "--game-only", "--accept-license", "SC2PATH"):
        assert option in result.stdout


def test_an_unknown_option_is_refused(install):
    result = install("--chekc")
    assert result.returncode == 1
    assert "unknown option --chekc: see --help" in result.stderr


def test_check_says_what_is_missing(install, game):
    result = install("--check", PYTHON="/no/python")
    assert result.returncode == 1
    assert f"missing StarCraft II, {game}/Versions/Base*/SC2_x64" in result.stdout
    assert "missing SMAC's maps" in result.stdout
    assert "missing Python, /no/python (`make setup` makes it)" in result.stdout
    assert not game.parent.exists()  # looking changes nothing


def test_check_lists_the_packages(install):
    result = install("--check", PYTHON=sys.executable)
    assert "package s2clientprotocol 5.0.17.98310.0" in result.stdout
    assert "package smac, commit" in result.stdout


def test_offline_install_and_again(install, archives, game):
    result = install("--offline", archives, "--game-only", "--accept-license")
    assert result.returncode == 0, result.stderr
    assert_installed(game)
    assert "AI_AND_MACHINE_LEARNING_LICENSE" in result.stdout  # shown even where it is accepted beforehand
    assert len(list(archives.iterdir())) == 2  # the user's own archives stay

    check = install("--check", "--game-only")
    assert check.returncode == 0
    assert f"present StarCraft II, {game}/{BINARY}" in check.stdout

    (game / BINARY).write_text("as played with")
    again = install("--game-only")  # needs neither archives nor the license
    assert again.returncode == 0
    assert "StarCraft II is already in" in again.stdout
    assert (game / BINARY).read_text() == "as played with"


def test_the_game_joins_what_is_in_the_folder(install, archives, game):
    (game / "Maps/SMAC_Maps").mkdir(parents=True)
    (game / "Maps/SMAC_Maps/my.SC2Map").write_text("mine")
    (game / "Versions/Base75689").mkdir(parents=True)
    result = install("--offline", archives, "--game-only", "--accept-license")
    assert result.returncode == 0, result.stderr
    assert (game / "Maps/SMAC_Maps/my.SC2Map").read_text() == "mine"
    assert (game / BINARY).read_text() == "the game"


@pytest.mark.parametrize("agrees", [True, False])
def test_the_license_is_asked_on_a_terminal(install, archives, game, agrees):
    master, slave = pty.openpty()
    os.write(master, b"iagreetotheeula\n" if agrees else b"no\n")
    result = install("--offline", archives, "--game-only", stdin=slave)
    os.close(master)
    os.close(slave)
    assert "AI_AND_MACHINE_LEARNING_LICENSE" in result.stdout
    if agrees:
        assert result.returncode == 0, result.stderr
        assert_installed(game)
    else:
        assert result.returncode == 1
        assert "you did not agree" in result.stderr
        assert not game.parent.exists()


def test_without_a_terminal_the_license_needs_the_option(install, archives, game):
    result = install("--offline", archives, "--game-only")
    assert result.returncode == 1
    assert "--accept-license" in result.stderr
    assert not game.parent.exists()


def test_a_missing_archive_names_its_address(install, archives):
    (archives / "SC2.4.10.zip").unlink()
    result = install("--offline", archives, "--game-only", "--accept-license")
    assert result.returncode == 1
    assert f"there is no SC2.4.10.zip in {archives}: download it from https://" in result.stderr


@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_a_damaged_archive_leaves_no_game(install, archives, game, damage):
    archive = archives / "SC2.4.10.zip"
    if damage == "changed":  # the table of contents is whole, only a checksum tells
        with zipfile.ZipFile(archive, "w") as plain:
            plain.writestr(f"StarCraftII/{BINARY}", "the game")
        archive.write_bytes(archive.read_bytes().replace(b"the game", b"the gone"))
    else:
        archive.write_bytes(archive.read_bytes()[: 200 if damage == "cut" else 0])
    result = install("--offline", archives, "--game-only", "--accept-license")
    assert result.returncode == 1
    assert f"{archive} is damaged: delete it, get it again" in result.stderr
    assert list(game.parent.iterdir()) == []


def test_an_archive_without_the_game_is_refused(install, archives, game):
    (archives / "SC2.4.10.zip").unlink()
    make_archive(archives / "SC2.4.10.zip", MAP_FILES)
    result = install("--offline", archives, "--game-only", "--accept-license")
    assert result.returncode == 1
    assert "holds no Versions/Base*/SC2_x64" in result.stderr
    assert not game.exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_download_goes_on_where_it_stopped(install, archives, game):
    urls = {"SC2_URL": f"file://{archives}/SC2.4.10.zip", "SMAC_MAPS_URL": f"file://{archives}/SMAC_Maps.zip"}
    whole = (archives / "SC2.4.10.zip").read_bytes()
    game.parent.mkdir()
    (game.parent / "SC2.4.10.zip.part").write_bytes(whole[:100])
    # Its first half is gone at the source: only a download that goes on from the part is whole.
    (archives / "SC2.4.10.zip").write_bytes(bytes(100) + whole[100:])
    result = install("--game-only", "--accept-license", **urls)
    assert result.returncode == 0, result.stderr
    assert_installed(game)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_failed_download_names_its_remedies(install, tmp_path):
    result = install("--game-only", "--accept-license", SC2_URL=f"file://{tmp_path}/nothing.zip")
    assert result.returncode == 1
    assert "run this again to go on" in result.stderr
    assert "--offline" in result.stderr


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_smac_and_pysc2_are_installed_without_their_dependencies(install, archives, tmp_path):
    """A Python that only notes what pip should install, and has no packages."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = - ] && exec "{sys.executable}" -S "$@"\necho "$@" >> "{tmp_path}/calls"\n')
    python.chmod(0o755)
    result = install("--offline", archives, "--accept-license", PYTHON=str(python))
    requirements, pysc2, smac = (tmp_path / "calls").read_text().splitlines()
    assert requirements.endswith("-m pip install -r " + str(ROOT / "requirements-sc2.txt"))
    assert pysc2 == "-m pip install --no-deps pysc2==4.0.0"
    assert smac.startswith("-m pip install --no-deps smac @ git+https://github.com/oxwhirl/smac.git@")
    assert result.returncode == 1  # pip installed nothing here, and the last look finds that
    assert "something is still missing" in result.stderr
