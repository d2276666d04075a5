"""install_sc2.sh, on small archives made here: nothing leaves this machine, and no package is installed."""

import os
import pty
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BINARY = "Versions/Base75689/SC2_x64"
GAME_FILES = {f"StarCraftII/{BINARY}": "the game", "StarCraftII/.build.info": "hidden", "StarCraftII/Maps/own": "a map"}
MAP_FILES = {"SMAC_Maps/3m.SC2Map": "3m", "SMAC_Maps/8m.SC2Map": "8m", "__MACOSX/SMAC_Maps/._3m.SC2Map": "of macOS"}
SMACV2_FILES = {"32x32_flat.SC2Map": "flat", "3m.SC2Map": "SMACv2's copy"}
SMAC = "smac", "d6aab33f76abc3849c50463a8592a84f59a5ef84"
SMACV2 = "smacv2", "577ab5a2cff2391f8df582da5731ea9cd6adf3c6"

pytestmark = [
    pytest.mark.skipif(os.uname()[0::4] != ("Linux", "x86_64"), reason="the game is for Linux on x86-64"),
    pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed"),
]


@pytest.fixture
def archives(tmp_path):
    """A folder with all archives, encrypted as the real game is where `zip` can do that."""
    folder = tmp_path / "archives"
    folder.mkdir()
    make_archive(folder / "SC2.4.10.zip", GAME_FILES)
    make_archive(folder / "SMAC_Maps.zip", MAP_FILES)
    make_archive(folder / "SMACv2_Maps.zip", SMACV2_FILES)
    return folder


def make_archive(path: Path, files: dict[str, str], password: str = "iagreetotheeula") -> None:
    """Makes an archive of these files, or adds them to it."""
    source = path.with_suffix("")
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    if shutil.which("zip"):
        subprocess.run(["zip", "-qrD", "-P", password, path, "."], cwd=source, check=True)
    else:
        with zipfile.ZipFile(path, "a") as archive:
            for name in files:
                archive.write(source / name, name)
    shutil.rmtree(source)


@pytest.fixture
def install(tmp_path):
    """Runs install_sc2.sh for the folder `game` of this test, with neither terminal nor network."""

    def run(*options: str | Path, stdin: int = subprocess.DEVNULL, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", ROOT / "install_sc2.sh", *options],
            env=os.environ | {"SC2PATH": str(tmp_path / "parent/game"), "no_proxy": "127.0.0.1"} | env,
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def game(tmp_path):
    return tmp_path / "parent/game"


@dataclass
class Server:
    """A web server for the archives. What a test sets here is what goes wrong."""

    url: str = ""
    cut: int | None = None  # break each answer off after this many bytes
    takes_ranges: bool = True
    says_size: bool = True
    asked: list[str | None] = field(default_factory=list)  # the ranges that were asked for

    @property
    def env(self) -> dict[str, str]:
        return {"SC2_URL": f"{self.url}/SC2.4.10.zip", "SMAC_MAPS_URL": f"{self.url}/SMAC_Maps.zip"}


@pytest.fixture
def server(archives) -> Iterator[Server]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/moved"))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            whole = (archives / self.path[1:]).read_bytes()
            asked = self.headers["Range"]
            state.asked.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.takes_ranges else 0
            if start >= len(whole):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(whole)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            if state.says_size:
                self.send_header("Content-Length", str(len(whole) - start))
            self.end_headers()
            self.wfile.write(whole[start : state.cut])

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}).start()
        yield state
        http.shutdown()


@pytest.fixture
def python(tmp_path):
    """A Python whose packages are those in the folder `site`, and whose pip only notes what it should install."""
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
        [ "$1" = - ] && PYTHONPATH="{tmp_path}/site" exec "{sys.executable}" -S "$@"
        echo "$@" >> "{tmp_path}/calls"
        case "$*" in *"$PIP_FAILS_ON"*) exit 1 ;; esac
        """
    )
    python.chmod(0o755)
    (tmp_path / "calls").touch()
    return python


def add_package(site: Path, name: str, version: str, address: str = "") -> None:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if address:
        (info / "direct_url.json").write_text(address)


def add_required_packages(site: Path) -> None:
    for line in [*(ROOT / "requirements-sc2.txt").read_text().splitlines(), "pysc2==4.0.0"]:
        if pin := line.split("#")[0].strip():
            add_package(site, *pin.split("=="))


def fake(tmp_path: Path, tool: str, script: str) -> str:
    """A PATH where a tool of the system does something else."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    (folder / tool).write_text(f"#!/bin/sh\n{script}\n")
    (folder / tool).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def assert_installed(game: Path) -> None:
    assert (game / BINARY).read_text() == "the game"
    assert os.access(game / BINARY, os.X_OK)
    assert (game / ".build.info").read_text() == "hidden"
    assert (game / "Maps/own").read_text() == "a map"
    assert (game / "Maps/SMAC_Maps/3m.SC2Map").read_text() == "3m"
    assert (game / "Maps/SMAC_Maps/8m.SC2Map").read_text() == "8m"
    assert [path.name for path in game.parent.iterdir()] == ["game"]  # no archive and no unpacking folder is left


def test_help_names_every_option(install):
    result = install("--help")
    assert result.returncode == 0
    for option in ("--check", "--smacv2", "--offline", "--game-only", "--packages-only", "--accept-license", "SC2PATH"):
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
    assert len(list(archives.iterdir())) == 3  # the user's own archives stay

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
    assert (game / "Maps/SMAC_Maps/3m.SC2Map").read_text() == "3m"  # a map of one's own does not stand for SMAC's


def test_a_copy_that_broke_off_is_no_game_and_goes_on(install, archives, game, tmp_path):
    (game / "Maps").mkdir(parents=True)
    options = "--offline", archives, "--game-only", "--accept-license"
    result = install(*options, PATH=fake(tmp_path, "cp", f'{shutil.which("cp")} "$@"; exit 1'))
    assert result.returncode == 1
    assert f"cannot write to {game}: make room there or mend its permissions, and run this again" in result.stderr
    assert install("--check", "--game-only").returncode == 1
    result = install(*options)
    assert result.returncode == 0, result.stderr
    assert_installed(game)


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


@pytest.mark.skipif(shutil.which("zip") is None, reason="zip is not installed")
def test_an_archive_with_files_that_do_not_open_leaves_no_game(install, archives, game):
    """unzip skips such files, and ends with 1 as after a mere warning."""
    make_archive(archives / "SC2.4.10.zip", {"StarCraftII/Battle.net": "of another archive"}, password="another")
    result = install("--offline", archives, "--game-only", "--accept-license")
    assert result.returncode == 1
    assert "SC2.4.10.zip is damaged: delete it, get it again" in result.stderr
    assert list(game.parent.iterdir()) == []


def test_a_mere_warning_of_unzip_is_none(install, archives, game, tmp_path):
    path = fake(tmp_path, "unzip", f'{shutil.which("unzip")} "$@"; [ "$1" = -Zt ] || exit 1')
    result = install("--offline", archives, "--game-only", "--accept-license", PATH=path)
    assert result.returncode == 0, result.stderr
    assert_installed(game)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("SC2.4.10.zip", "Versions/Base*/SC2_x64"),
        ("SMAC_Maps.zip", "3m.SC2Map"),
        ("SMACv2_Maps.zip", "32x32_flat.SC2Map"),
    ],
)
def test_an_archive_of_something_else_is_refused(install, archives, name, lacks):
    (archives / name).unlink()
    make_archive(archives / name, {"StarCraftII/Maps/own": "a map"})
    result = install("--offline", archives, "--game-only", "--accept-license", "--smacv2")
    assert result.returncode == 1
    assert f"{archives / name} holds no {lacks}: get it from https://" in result.stderr
    assert install("--check", "--game-only", "--smacv2").returncode == 1


# Downloads


@pytest.mark.parametrize("says_size", [True, False])
def test_a_download_from_where_the_archives_have_moved_to(install, server, game, says_size):
    server.url += "/moved"
    server.says_size = says_size
    result = install("--game-only", "--accept-license", **server.env)
    assert result.returncode == 0, result.stderr
    assert_installed(game)


def test_a_download_goes_on_where_it_stopped(install, server, game):
    server.cut = 100
    result = install("--game-only", "--accept-license", **server.env)
    assert result.returncode == 1
    assert "run this again to go on where it stopped" in result.stderr
    assert [path.name for path in game.parent.iterdir()] == ["SC2.4.10.zip.part"]

    server.cut = None
    server.asked.clear()
    result = install("--game-only", "--accept-license", **server.env)
    assert result.returncode == 0, result.stderr
    assert_installed(game)
    assert server.asked == ["bytes=100-", None]  # the rest of the game, and all of the maps


def test_a_complete_part_needs_no_download(install, server, archives, game):
    game.parent.mkdir()
    shutil.copy(archives / "SC2.4.10.zip", game.parent / "SC2.4.10.zip.part")
    result = install("--game-only", "--accept-license", **server.env)
    assert result.returncode == 0, result.stderr
    assert_installed(game)


def test_a_part_of_another_size_is_refused(install, server, archives, game):
    size = (archives / "SC2.4.10.zip").stat().st_size
    game.parent.mkdir()
    part = game.parent / "SC2.4.10.zip.part"
    part.write_bytes(bytes(size + 7))
    result = install("--game-only", "--accept-license", **server.env)
    assert result.returncode == 1
    assert f"{part} has {size + 7} bytes, but {server.url}/SC2.4.10.zip has {size}: delete it" in result.stderr
    assert [path.name for path in game.parent.iterdir()] == [part.name]


def test_a_server_that_cannot_go_on_is_named_with_the_remedy(install, server, game):
    server.takes_ranges = False
    game.parent.mkdir()
    part = game.parent / "SC2.4.10.zip.part"
    part.write_bytes(bytes(7))
    result = install("--game-only", "--accept-license", **server.env)
    assert result.returncode == 1
    assert f"if it fails again, delete {part}, or bring SC2.4.10.zip from elsewhere and use --offline" in result.stderr


def test_a_damaged_download_leaves_no_game(install, server, archives, game):
    archive = archives / "SC2.4.10.zip"
    archive.write_bytes(archive.read_bytes()[:-30])  # the server has no more: the size agrees, and the zip is cut
    result = install("--game-only", "--accept-license", **server.env)
    assert result.returncode == 1
    assert f"{game.parent}/SC2.4.10.zip is damaged: delete it, get it again" in result.stderr
    assert [path.name for path in game.parent.iterdir()] == ["SC2.4.10.zip"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_failed_download_names_its_remedies(install, tmp_path):
    result = install("--game-only", "--accept-license", SC2_URL=f"file://{tmp_path}/nothing.zip")
    assert result.returncode == 1
    assert "run this again to go on" in result.stderr
    assert "--offline" in result.stderr


# SMACv2


def test_smacv2_brings_its_map(install, archives, game):
    result = install("--offline", archives, "--game-only", "--accept-license", "--smacv2")
    assert result.returncode == 0, result.stderr
    assert f"present SMACv2's map, {game}/Maps/SMAC_Maps/32x32_flat.SC2Map" in result.stdout
    assert (game / "Maps/SMAC_Maps/32x32_flat.SC2Map").read_text() == "flat"
    assert_installed(game)  # its copies of SMAC's maps stay in the archive


def test_smacv2_comes_later(install, archives, game, tmp_path):
    assert install("--offline", archives, "--game-only", "--accept-license").returncode == 0
    without = install("--check", "--game-only")
    assert without.returncode == 0
    assert "optional SMACv2's map" in without.stdout
    assert "(--smacv2 installs what is optional)" in without.stdout
    wanted = install("--check", "--game-only", "--smacv2")
    assert wanted.returncode == 1
    assert "missing SMACv2's map" in wanted.stdout
    assert "Run `bash install_sc2.sh --smacv2` to install what is missing." in wanted.stdout

    only = tmp_path / "only"
    only.mkdir()
    missing = install("--offline", only, "--game-only", "--smacv2")
    assert missing.returncode == 1
    address = "https://github.com/oxwhirl/smacv2/releases/download/maps/SMAC_Maps.zip"
    assert f"there is no SMACv2_Maps.zip in {only}: download it from {address}" in missing.stderr
    assert "and give it this name" in missing.stderr

    shutil.copy(archives / "SMACv2_Maps.zip", only)
    assert install("--offline", only, "--game-only", "--smacv2").returncode == 0
    assert install("--check", "--game-only", "--smacv2").returncode == 0
    assert "SMACv2's map is already in" in install("--game-only", "--smacv2").stdout
    assert_installed(game)


def test_the_map_of_smacv2_does_not_stand_for_those_of_smac(install, archives, game):
    (game / "Maps/SMAC_Maps").mkdir(parents=True)
    (game / "Maps/SMAC_Maps/32x32_flat.SC2Map").write_text("flat")
    assert "missing SMAC's maps" in install("--check", "--game-only").stdout
    assert install("--offline", archives, "--game-only", "--accept-license").returncode == 0
    assert_installed(game)


# Python packages


def pip_calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("repositories", [[SMAC], [SMAC, SMACV2]])
def test_packages_are_installed_without_their_dependencies(install, archives, python, tmp_path, repositories):
    flags = ["--smacv2"] if SMACV2 in repositories else []
    result = install("--offline", archives, "--accept-license", *flags, PYTHON=str(python), PIP_FAILS_ON="nothing")
    assert pip_calls(tmp_path) == [
        f"-m pip install --no-deps -r {ROOT / 'requirements-sc2.txt'} pysc2==4.0.0",
        *(
            f"-m pip install --no-deps --force-reinstall {name} @ git+https://github.com/oxwhirl/{name}.git@{commit}"
            for name, commit in repositories
        ),
    ]
    assert result.returncode == 1  # pip installed nothing here, and the last look finds that
    assert "something is still missing" in result.stderr


def test_packages_that_are_there_are_left_alone(install, archives, python, tmp_path):
    add_required_packages(tmp_path / "site")
    add_package(tmp_path / "site", "smac", "1.0.0", f'{{"commit_id": "{SMAC[1]}"}}')
    result = install("--offline", archives, "--accept-license", PYTHON=str(python))
    assert result.returncode == 0, result.stderr
    assert "The Python packages are already installed" in result.stdout
    assert pip_calls(tmp_path) == []
    assert f"optional package smacv2, commit {SMACV2[1][:10]}" in result.stdout

    result = install("--check", "--smacv2", PYTHON=str(python))
    assert result.returncode == 1
    assert f"missing package smacv2, commit {SMACV2[1][:10]}" in result.stdout
    add_package(tmp_path / "site", "smacv2", "1.0.0", f'{{"commit_id": "{SMACV2[1]}"}}')
    result = install("--offline", archives, "--smacv2", PYTHON=str(python))
    assert result.returncode == 0, result.stderr
    assert pip_calls(tmp_path) == []


def test_packages_alone_need_neither_game_nor_license(install, python, tmp_path, game):
    add_required_packages(tmp_path / "site")
    add_package(tmp_path / "site", "smac", "1.0.0", f'{{"commit_id": "{SMAC[1]}"}}')
    result = install("--packages-only", PYTHON=str(python))
    assert result.returncode == 0, result.stderr
    assert "StarCraft II" not in result.stdout
    assert not game.exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize(
    ("version", "address"), [("2.3.1", ""), ("1.0.0", '{"commit_id": "12614f1760427026cce82083dc3f0ab3ff1d939e"}')]
)
def test_another_smac_is_replaced(install, archives, python, tmp_path, version, address):
    """AutoML's package, and another commit."""
    add_required_packages(tmp_path / "site")
    add_package(tmp_path / "site", "smac", version, address)
    result = install("--offline", archives, "--accept-license", PYTHON=str(python), PIP_FAILS_ON="nothing")
    assert f"(found another smac, {version})" in result.stdout
    assert "--force-reinstall smac @ git+https" in pip_calls(tmp_path)[-1]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize(
    ("fails_on", "what"),
    [
        ("pysc2", "requirements-sc2.txt and pysc2"),
        ("oxwhirl/smac.git", "smac from GitHub"),
        ("oxwhirl/smacv2.git", "smacv2 from GitHub"),
    ],
)
def test_a_failure_of_pip_names_its_remedy(install, archives, python, fails_on, what):
    result = install("--offline", archives, "--accept-license", "--smacv2", PYTHON=str(python), PIP_FAILS_ON=fails_on)
    assert result.returncode == 1
    assert f"pip could not install {what}: see the message above (pip needs a network)" in result.stderr
    assert "then run this again" in result.stderr


# The machine


@pytest.mark.parametrize("tool", ["unzip", "curl", "git"])
def test_a_missing_tool_is_named(install, server, archives, python, tmp_path, tool):
    tools = tmp_path / "tools"
    tools.mkdir()
    for file in (file for folder in os.get_exec_path() for file in Path(folder).glob("*")):
        if file.name != tool and not (tools / file.name).is_symlink():
            (tools / file.name).symlink_to(file)
    offline = [] if tool == "curl" else ["--offline", archives]
    result = install("--accept-license", *offline, PATH=str(tools), PYTHON=str(python), PIP_FAILS_ON="nothing")
    assert result.returncode == 1
    assert f"{tool} is not installed: try `sudo apt-get install {tool}`, then run this again" in result.stderr


@pytest.mark.parametrize(
    ("tool", "script", "remedy"),
    [
        ("df", "echo disk 9 9 0 100% /", "has 0 MiB free and needs 0: make room, or set SC2PATH"),
        (
            "unzip",
            f'[ "$1" != -Zt ] && exit 50; exec {shutil.which("unzip")} "$@"',
            "is full: make room, or set SC2PATH",
        ),
        ("uname", "echo Darwin arm64", "not Darwin arm64: use --env-config=smax there"),
        ("mktemp", "exit 1", "choose another folder with SC2PATH"),
        ("mkdir", "exit 1", "choose another folder with SC2PATH"),
        ("mv", "exit 1", "make room there or mend its permissions, and run this again"),
    ],
)
def test_what_the_machine_cannot_do_names_its_remedy(install, archives, game, tmp_path, tool, script, remedy):
    path = fake(tmp_path, tool, script)
    result = install("--offline", archives, "--game-only", "--accept-license", PATH=path)
    assert result.returncode == 1
    assert remedy in result.stderr
    assert not game.parent.exists() or list(game.parent.iterdir()) == []


def test_a_python_that_is_not_there_names_its_remedy(install, archives):
    result = install("--offline", archives, "--accept-license", PYTHON="/no/python")
    assert result.returncode == 1
    assert "there is no Python at /no/python: run `make setup`, or name another one with PYTHON=..." in result.stderr


def test_a_python_that_does_not_run_names_its_remedy(install, archives):
    result = install("--offline", archives, "--accept-license", PYTHON="false")
    assert result.returncode == 1
    assert "false does not run: name another one with PYTHON=..." in result.stderr


def test_offline_needs_a_folder(install, tmp_path):
    result = install("--offline", tmp_path / "nothing")
    assert result.returncode == 1
    assert "--offline needs a folder that exists" in result.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    result = subprocess.run(["shellcheck", ROOT / "install_sc2.sh"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
