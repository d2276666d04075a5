"""Command line: python src/main.py --config=ALG --env-config=ENV with key=value env_args.key=value"""

import contextlib
import os
import shutil
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# OpenMP threads that wait actively stall for as long as anything else uses their core. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # sacred's import, nothing to act upon

import docopt
from sacred import SETTINGS
from sacred import Experiment as SacredExperiment
from sacred.arg_parser import get_config_updates

from config.schema import ConfigError, config_files, load
from utils.credentials import hide, names_mongo
from utils.errors import Interrupted, RunFailure, UserError
from utils.logging import format_table, get_logger
from utils.record import RunFolder

SETTINGS["CAPTURE_MODE"] = "sys"  # pyright: ignore  "fd" breaks on some platforms
SETTINGS["HOST_INFO"]["CAPTURED_ENV"] = ["GREED_IS_GOOD_COMMIT"]  # pyright: ignore  of an image, which is no repository

HELP = """Train cooperative agents: PyMARL's pipeline, and learning when to ignore cooperation.

  python src/main.py --config=ALG --env-config=ENV [with KEY=VALUE ...] [sacred's options]

  --config=ALG        {algs}, or the path of a yaml file
  --env-config=ENV    {envs}, or the path of a yaml file
  with KEY=VALUE      overrides; keys of a block with a dot: env_args.map_name=2s3z gate.mode=hard

Examples
  python src/main.py --config=greedy_qmix --env-config=smax with env_args.map_name=3m
  python src/main.py --config=qmix --env-config=matrix_games with env_args.game=two_step seed=1
  python src/main.py --config=qmix --env-config=smax print_config
  python src/main.py --config=qmix --env-config=smax with checkpoint_path=results/models/TOKEN evaluate=True

MongoDB too keeps the record with -m host:port:db, or MONGO_URL=mongodb://user:password@host:port/db in the environment.
docs/configuration.md lists every key. Sacred's own options (-F folder, -u, --name, ...):
"""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code.

    0 done, 1 failed, 2 bad input, 75 stopped with a checkpoint, 130 the same by Ctrl-C.
    """
    sys.path.append(os.getcwd())  # where plug-ins of the user's own lie
    try:
        experiment = SacredExperiment("greed_is_good", save_git_info=shutil.which("git") is not None)
        for package in ("torch", "jax", "jaxmarl"):  # which load too late for sacred to find them
            with contextlib.suppress(PackageNotFoundError):
                experiment.add_package_dependency(package, version(package).partition("+")[0])
        experiment.captured_out_filter = hide  # pyright: ignore[reportAttributeAccessIssue]  sacred declares no type
        resumption = None
        config, mongo_option, rest = read_arguments(experiment, argv[1:])
        if config is None:
            print(HELP.format(algs=", ".join(config_files("algs")), envs=", ".join(config_files("envs"))))
            rest = ["--help"]
        else:
            experiment.add_config(config)
            if config["resume"]:
                from utils.checkpoints import find  # it loads torch

                resumption = find(config["resume"], config)
                if resumption is not None and resumption.result is not None:
                    rows = [(key, f"{value}") for key, value in resumption.result.items()]
                    print(format_table(rows, f"{resumption.folder.name} is complete; its last test"))
                    return 0
            sacred_id = None if resumption is None else resumption.description["sacred_id"]
            records = Path(config["local_results_path"]) / "sacred"

            def observers(sacred_id: str | None = None) -> list:
                found: list = [RunFolder(records, get_logger(), sacred_id)]
                if mongo_option or names_mongo():
                    from utils.mongo import MongoRecord, locate

                    found.append(MongoRecord(locate(mongo_option), records, get_logger()))
                return found

            experiment.observers += observers(sacred_id)
    except (ConfigError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    @experiment.option_hook
    def _without_sacreds_mongo_observer(options):
        options["--mongo_db"] = None  # `MongoRecord` is there instead: it needs no server to begin, and loses nothing

    experiment.logger = get_logger()  # pyright: ignore[reportAttributeAccessIssue]  sacred declares no type

    @experiment.main
    def train(_run, _log):
        assert config is not None  # then there would be help only
        try:
            # torch and the environments load only when there is something to run
            if config["seeds"] > 1:
                from seeds import run_seeds

                return run_seeds(_run, config, _log, observers)
            from run import run

            return run(_run, config, _log, resumption)
        except (UserError, RunFailure) as error:
            # SystemExit: sacred records the run as failed, and prints no traceback.
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2 if isinstance(error, UserError) else 1) from error
        finally:
            _run._get_captured_output()  # sacred records the last words only of runs that are complete

    try:
        experiment.run_commandline([argv[0], *rest])
    except Interrupted as interrupted:
        print(f"{interrupted}")
        return interrupted.code
    except KeyboardInterrupt:
        return 130
    return 0


def read_arguments(experiment: SacredExperiment, argv: list[str]) -> tuple[dict | None, str | None, list[str]]:
    """The configuration that the command line asks for (None: help), what stands behind -m, and what is sacred's.

    Raises:
        ConfigError: anything is wrong with it.
    """
    alg, rest = _take_option(argv, "--config")
    env, rest = _take_option(rest, "--env-config")
    if {"-h", "--help", "help"} & set(rest):
        return None, None, rest
    overrides, mongo_option = _parse(experiment, rest)
    return load(alg, env, overrides), mongo_option, rest


def _take_option(argv: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `--name=value` or `--name value` (None without it), and the other arguments."""
    rest, value, i = [], None, 0
    while i < len(argv):
        if argv[i].startswith(name + "="):
            value = argv[i].partition("=")[2]
        elif argv[i] == name:
            if i + 1 == len(argv):
                raise ConfigError(f"command line: {name} needs a value: {name}=NAME")
            value, i = argv[i + 1], i + 1
        else:
            rest.append(argv[i])
        i += 1
    return value, rest


def _parse(experiment: SacredExperiment, argv: list[str]) -> tuple[dict, str | None]:
    """What stands behind `with`, and behind -m, parsed as sacred will parse it."""
    try:
        parsed = docopt.docopt(experiment.get_usage()[2], argv, default_help=False)
    except docopt.DocoptExit as error:
        raise ConfigError(
            f"command line: cannot read {hide(' '.join(argv))!r}; overrides stand behind the word with: "
            f"python src/main.py --config=ALG --env-config=ENV with key=value (see --help)"
        ) from error
    command = parsed["COMMAND"]
    commands = sorted(name for name, _ in experiment.gather_commands())
    if command is not None and command not in commands:
        raise ConfigError(
            f"command line: {command!r} is no command of sacred's ({', '.join(commands)}); "
            f"an override stands behind the word with: with {command}"
        )
    updates, bare = get_config_updates(parsed["UPDATE"])
    if bare:
        raise ConfigError(f"command line: {bare[0]!r} behind `with` is no override; write key=value")
    return updates, parsed["--mongo_db"]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
