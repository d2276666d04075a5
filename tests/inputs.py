"""Inputs of every kind, good and bad, and what must come of each: it is used, or one clear error names the culprit.

`KINDS` has a strategy of hypothesis and a check for each kind. The tests try some of every kind, `benchmarks/drill.py
inputs` as many as it is told to.
"""

import contextlib
import functools
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from helpers import assert_equal, make_args, make_learner, make_scheme, random_batch, run_main, weights
from hypothesis import strategies as st
from plugins.misbehaving import ACTIONS, AGENTS, OBS, STATE, ScriptedEnv
from sacred import Experiment as SacredExperiment

from components.dataset import DatasetWriter, load_dataset
from components.episode_buffer import EpisodeBatch, ReplayBuffer
from config.schema import BLOCKS, ENV_ARGS, ConfigError, Run, config_files, freeze, load
from envs.multiagentenv import EnvCrash
from envs.replies import CheckedEnv
from main import read_arguments
from utils import models
from utils.checkpoints import Checkpoints, find
from utils.errors import UserError

USED, REFUSED = "used", "refused"

# Runs flush denormals in the process where they are played, and hypothesis will not draw what cannot be there.
floats = partial(st.floats, allow_subnormal=False)


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind.

    Args:
        inputs: draws one.
        check: tries it; says whether it was used or refused, and raises AssertionError, or whatever else went wrong.
    """

    inputs: st.SearchStrategy
    check: Callable[[Any], str]


def assert_one_line(error: Exception, *culprits: str) -> None:
    """The error is one line, and names one of these."""
    text = str(error)
    assert text, "an error without a text"
    assert "\n" not in text, text
    assert not culprits or any(culprit in text for culprit in culprits), f"{culprits} are not in: {text}"


@functools.cache
def workplace() -> Path:
    """A folder for all that is tried; of this process, and gone with it."""
    folder = tempfile.TemporaryDirectory()
    workplace.keep = folder  # type: ignore[attr-defined]
    return Path(folder.name)


# --- values and keys

WORDS = [
    "None",
    "null",
    "~",
    "True",
    "false",
    "nan",
    ".inf",
    "1e3",
    "5e-4",
    "0x10",
    "1_000",
    "",
    "a b",
    "{}",
    "[]",
    "'",
]
texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=12))
numbers = st.one_of(
    st.integers(-3, 300), st.integers(), floats(), st.sampled_from([0, 1, 0.5, -1, 10**30, float("nan")])
)
plain = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)
KEYS = [*Run.model_fields, "plugin", "env_args", *BLOCKS]
KEYS += [f"{block}.{key}" for block, model in BLOCKS.items() for key in model.model_fields]
KEYS += [f"env_args.{key}" for model in ENV_ARGS.values() for key in model.model_fields]
KEYS += ["plugin.mine", "plugin.lr", "plugin.a.b", "extends", "env_args.", ".lr", "lr.", "lr.x", "gate..mode", "seed "]


@st.composite
def misspelt(draw) -> str:
    """A key in which a letter is missing, doubled or another."""
    key = draw(st.sampled_from(KEYS))
    at = draw(st.integers(0, max(0, len(key) - 1)))
    letter = draw(st.one_of(st.sampled_from("._-= aZ0$"), st.characters()))
    return draw(
        st.sampled_from([key[:at] + key[at + 1 :], key[:at] + letter + key[at:], key[:at] + letter + key[at + 1 :]])
    )


keys = st.one_of(st.sampled_from(KEYS), misspelt(), st.text(max_size=8))
algs, envs = (st.sampled_from([*config_files(kind), "qmiks"]) for kind in ("algs", "envs"))


# --- the command line


@functools.cache
def experiment() -> SacredExperiment:
    return SacredExperiment("inputs", save_git_info=False)


@st.composite
def overrides(draw) -> str:
    key, value = draw(keys), draw(values)
    written = draw(st.sampled_from([repr(value), str(value), json.dumps(value, default=str)]))
    return draw(
        st.sampled_from(
            [f"{key}={written}"] * 6 + [f"{key} = {written}", f"{key}:{written}", key, f"={written}", f"{key}=="]
        )
    )


@st.composite
def command_lines(draw) -> list[str]:
    alg, env = draw(algs), draw(envs)
    argv = draw(
        st.sampled_from([[f"--config={alg}", f"--env-config={env}"]] * 6 + [["--config", alg], [f"--env-config={env}"]])
    )
    words = draw(st.lists(st.one_of(overrides(), overrides(), texts), max_size=3))
    between = draw(st.sampled_from([["with"]] * 8 + [[], ["print_config", "with"], ["mit"]]))
    # No command line holds a NUL.
    return [word.replace("\0", "") for word in (*argv, *(between if words else []), *words)]


def check_command_line(argv: list[str]) -> str:
    try:
        config, _, _ = read_arguments(experiment(), argv)
    except ConfigError as error:
        names = [word for given in argv[2:] for word in re.split(r"[=. :]+", given) if word]
        assert_one_line(error, "command line", "--config", "--env-config", *names, *(repr(n)[1:-1] for n in names))
        return REFUSED
    if config is not None:
        assert_good(config)
        assert_printed(argv)
    return USED


def assert_printed(argv: list[str]) -> None:
    """sacred, which reads the command line again, shows this configuration; or there is no such run to resume."""
    if "print_config" not in argv:
        at = argv.index("with") if "with" in argv else len(argv)
        argv = [*argv[:at], "print_config", *argv[at:]]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_main(*argv)
    if code == 2:
        assert re.fullmatch(r"error: resume=.*\n", err.getvalue()), err.getvalue()
        return
    assert code == 0, (code, out.getvalue()[-300:], err.getvalue())
    assert "Configuration" in out.getvalue()


def assert_good(config: dict) -> None:
    """A configuration can be frozen, written down and read again."""
    assert freeze(config).as_dict().keys() >= Run.model_fields.keys()
    assert json.loads(json.dumps(config)).keys() == config.keys()


# --- yaml files


@st.composite
def yaml_files(draw) -> tuple[str, bytes]:
    """(the flag, the content)"""
    flag = draw(st.sampled_from(["config", "env-config"]))
    home = {"config": "algs", "env-config": "envs"}[flag]
    base = draw(st.sampled_from(list(config_files(home).values())))
    kind = draw(st.sampled_from(["keys", "keys", "damaged", "bytes"]))
    if kind == "bytes":
        return flag, draw(st.binary(max_size=60))
    if kind == "damaged":
        return flag, damage(base.read_bytes(), draw(st.lists(damages, min_size=1, max_size=3)))
    content = {"extends": base.stem, **draw(st.dictionaries(keys, values, max_size=3))}
    nested: dict = {}
    for key, value in content.items():
        block, dot, rest = key.partition(".")
        if dot and rest and draw(st.booleans()):
            inner = nested.setdefault(block, {})
            if isinstance(inner, dict):
                inner[rest] = value
        else:
            nested[key] = value
    return flag, yaml.safe_dump(nested, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")


def check_yaml_file(given: tuple[str, bytes]) -> str:
    flag, content = given
    file = workplace() / "mine.yaml"
    file.write_bytes(content)
    alg, env = (str(file), "matrix_games") if flag == "config" else ("qmix", str(file))
    try:
        config = load(alg, env, {})
    except ConfigError as error:
        # The file itself, or the learner or environment that it asks for, needs something.
        assert_one_line(error, str(file), "is missing", "default.yaml", "src/config", "(did you mean")
        return REFUSED
    assert_good(config)
    return USED


# --- damage to files


@dataclass(frozen=True)
class Damage:
    """What happens to a file: how, where (a large number, modulo the file's length) and with what."""

    how: str
    where: int
    what: bytes


HOW = ("flip", "flip", "flip", "truncate", "overwrite", "insert", "cut", "empty")
places = st.integers(0, 2**31).map(lambda n: n * 2654435761 % 2**32)  # hypothesis likes small numbers
damages = st.builds(Damage, st.sampled_from(HOW), places, st.binary(min_size=1, max_size=8))


def damage(content: bytes, how: list[Damage]) -> bytes:
    for one in how:
        at = one.where % (len(content) + 1)
        if one.how == "flip" and content:
            at %= len(content)
            content = content[:at] + bytes([content[at] ^ (1 << one.what[0] % 8)]) + content[at + 1 :]
        elif one.how == "truncate":
            content = content[:at]
        elif one.how == "overwrite":
            content = content[:at] + one.what + content[at + len(one.what) :]
        elif one.how == "insert":
            content = content[:at] + one.what + content[at:]
        elif one.how == "cut":
            content = content[:at] + content[at + len(one.what) :]
        elif one.how == "empty":
            content = b""
    return content


@st.composite
def harms(draw) -> list[tuple[int, list[Damage] | str]]:
    """To files of a folder, by number: damage, or it is gone, or in its place is a folder or another file's content."""
    harm = st.one_of(st.lists(damages, min_size=1, max_size=3), st.sampled_from(["gone", "folder", "swapped"]))
    return draw(st.lists(st.tuples(st.integers(0, 50), harm), min_size=1, max_size=2))


def apply(folder: Path, harm: list[tuple[int, list[Damage] | str]]) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number, how in harm:
        file = files[number % len(files)]
        if not file.is_file():
            continue
        if isinstance(how, list):
            file.write_bytes(damage(file.read_bytes(), how))
        elif how == "swapped":
            other = files[(number + 1) % len(files)]
            file.write_bytes(other.read_bytes() if other.is_file() else b"")
        else:
            file.unlink()
            if how == "folder":
                file.mkdir()


def copy_of(folder: Path) -> Path:
    """A fresh copy, in the place of the one before."""
    copy = workplace() / "copies" / folder.name
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folder, copy))


# --- checkpoints

CONFIG = {"lr": 0.1, "block": {"a": 1}}


def replay() -> ReplayBuffer:
    return ReplayBuffer({"obs": {"vshape": 3, "group": "agents"}}, {"agents": 2}, 4, 3)


def state_of_step(step: int) -> dict:
    return {"weights": torch.arange(20.0) * step, "step": step, "more": [("a", step), ("b", None)]}


@functools.cache
def saved_run() -> tuple[Path, dict[int, ReplayBuffer]]:
    """A run with two checkpoints, and their replays."""
    folder, buffer, then = workplace() / "run", replay(), {}
    with Checkpoints(folder, 2) as checkpoints:
        for step in (10, 20):
            for _ in range(3):
                batch = EpisodeBatch(buffer.scheme, buffer.groups, 1, 3)
                batch.update({"obs": torch.full((1, 2, 2, 3), buffer.inserted + 1.0)}, ts=slice(0, 2))
                buffer.insert_episode_batch(batch)
            about = {"token": "run", "config": CONFIG, "sacred_id": "1", "resumed": 0}
            checkpoints.write(step, state_of_step(step), buffer, about)
            then[step] = replay()
            for first in range(buffer.inserted):
                if first >= buffer.inserted - buffer.buffer_size:
                    then[step].put(buffer.episodes(first, first + 1), first)
    return folder, then


def check_checkpoint(harm) -> str:
    original, replays = saved_run()
    folder = copy_of(original)
    apply(folder, harm)
    try:
        found = find(str(folder), {**CONFIG, "local_results_path": str(folder.parent)})
        assert found is not None
        assert found.result is None
        buffer = replay()
        with Checkpoints(folder, 2) as checkpoints:
            description, state = checkpoints.read(buffer.put, "cpu", lambda *_: None)
    except UserError as error:
        assert_one_line(error, str(folder))
        return REFUSED
    step = description["step"]
    assert description["config"] == CONFIG
    assert unequal(state, state_of_step(step)) == []
    expected = replays[step]
    assert buffer.inserted == expected.inserted
    assert torch.equal(buffer.data.transition_data["obs"], expected.data.transition_data["obs"])
    return USED


def unequal(a: Any, b: Any) -> list:
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [(a, b)]
    if isinstance(a, dict):
        return [place for key in a.keys() | b.keys() for place in unequal(a.get(key), b.get(key))]
    return [] if a == b else [(a, b)]


# --- models


@functools.cache
def saved_model() -> tuple[Path, Any, dict]:
    args = make_args("qmix")
    learner = make_learner(args, seed=1)
    models.save(learner, workplace() / "model", 100, args)
    return workplace() / "model", args, weights(learner)


def check_model(harm) -> str:
    original, args, expected = saved_model()
    folder = copy_of(original)
    apply(folder, harm)
    learner = make_learner(args, seed=2)
    try:
        path, step = models.find(str(folder), 0)
        models.load(learner, path, args)
    except UserError as error:
        assert_one_line(error, "checkpoint_path")
        return REFUSED
    assert step == 100
    assert_equal(weights(learner), expected)
    return USED


# --- datasets


@functools.cache
def recorded() -> tuple[Path, dict, tuple, ReplayBuffer]:
    args = make_args("qmix")
    parts, steps = make_scheme(args), args.episode_limit + 1
    names = ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")
    run = {"env": "matrix_games", "bootstrap_time_limit": True, "env_args": json.dumps({"game": "two_step", "seed": 1})}
    run |= {name: getattr(args, name) for name in names}
    path = workplace() / "recorded" / "episodes.h5"
    writer = DatasetWriter(path, *parts, steps, {**run, "seed": 1, "policy": "{}"})
    for seed in range(2):
        writer.append(random_batch(args, seed))
    writer.commit()
    return path, run, (*parts, steps, "cpu"), load_dataset(str(path), run, *parts, steps, "cpu")[0]


attribute_names = st.one_of(
    st.sampled_from(["episodes", "transitions", "env_args", "n_agents", "checksum", "format", "format_version", "env"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=6),
)
attribute_values = st.one_of(
    st.integers(-(2**40), 2**40),
    floats(),
    st.booleans(),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from([b"\xff", "{}", "[1]", '{"game": 1}', "null"]),
)
new_attributes = st.dictionaries(attribute_names, st.none() | attribute_values, min_size=1, max_size=2)
new_fields = st.tuples(
    st.sampled_from(["obs", "reward", "filled", "actions", "avail_actions", "state", "terminated", "mine"]),
    st.sampled_from(["gone", "shape", "type", "group", "value", "scalar", "text"]),
)


def change_file(path: Path, attributes: dict, field: tuple[str, str] | None) -> None:
    """As a program of the user's own might."""
    with h5py.File(path, "r+") as file:
        for key, value in attributes.items():
            if value is None:
                file.attrs.pop(key, None)
            else:
                file.attrs[key] = value
        if field is None:
            return
        name, how = field
        before = file[name][...] if name in file else np.zeros((3, 4), np.float32)
        if how == "value" and name in file:
            file[name][..., :1] = file[name][..., :1] + 1
            return
        if name in file:
            del file[name]
        if how == "group":
            file.create_group(name)
        elif how == "text":
            file[name] = "text"
        elif how == "scalar":
            file[name] = 1.0
        elif how != "gone":
            file[name] = before[:-1] if how == "shape" else before.astype(np.int16)


datasets = st.one_of(st.lists(damages, min_size=1, max_size=3), st.tuples(new_attributes, st.none() | new_fields))


def check_dataset_file(given) -> str:
    original, run, parts, expected = recorded()
    path = workplace() / "mine.h5"
    path.unlink(missing_ok=True)
    shutil.copy(original, path)
    if isinstance(given, list):
        path.write_bytes(damage(path.read_bytes(), given))
    else:
        change_file(path, *given)
    try:
        found, _ = load_dataset(str(path), run, *parts)
    except UserError as error:
        assert_one_line(error, str(path))
        return REFUSED
    for field, value in expected.data.transition_data.items():
        assert torch.equal(found.data.transition_data[field], value), field
    return USED


# --- environments

odd = st.sampled_from(
    [None, "text", b"\0", [], {}, [[]], object(), 1j, np.nan, -np.inf, 10**400, np.array([[1.0]]), [1, [2]]]
)
arrays = st.builds(
    lambda shape, value, kind: np.full(shape, value).astype(kind),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, bool, object]),
)


def of_shape(*shape: int) -> st.SearchStrategy:
    """Mostly numbers of this shape, of which some are odd."""

    def build(entries: list, kind) -> Any:
        nested = [float(i % 7) / 7 for i in range(int(np.prod(shape)))]
        for at, value in entries:
            nested[at % len(nested)] = value
        if kind == "array" and all(isinstance(value, float) for value in nested):
            return np.array(nested).reshape(shape)
        if len(shape) == 1:
            return nested
        return [nested[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]

    entries = st.lists(st.tuples(st.integers(0, 99), floats() | odd), max_size=1)
    return st.one_of(st.builds(build, entries, st.sampled_from(["array", "lists"])), arrays, odd)


masks = st.one_of(
    st.lists(
        st.lists(st.sampled_from([0, 1, 1, 1, 1, True]), min_size=ACTIONS, max_size=ACTIONS),
        min_size=AGENTS,
        max_size=AGENTS,
    ),
    of_shape(AGENTS, ACTIONS),
)
rewards = st.one_of(
    floats(-10, 10), floats(), st.integers(), st.sampled_from([np.float32(1), np.int8(3), True]), odd, arrays
)
ends = st.one_of(st.booleans(), st.booleans(), st.sampled_from([np.True_, 0, 1, 2, 0.5]), odd, arrays)
info_values = st.one_of(floats(-1, 1), st.booleans(), odd, arrays, st.lists(floats(-1, 1), max_size=4))
infos = st.one_of(
    st.fixed_dictionaries(
        {"individual_reward": of_shape(AGENTS)},
        optional={"episode_limit": info_values, "won": info_values, 3: info_values, ("a", 1): info_values},
    ),
    odd,
)
good_obs, good_state = st.just(np.zeros((AGENTS, OBS))), st.just([0.0] * STATE)
good_mask, good_info = st.just(np.ones((AGENTS, ACTIONS))), st.just({"individual_reward": [1.0] * AGENTS})


@st.composite
def mostly(draw, good: st.SearchStrategy, other: st.SearchStrategy):
    return draw(other if draw(st.integers(0, 7)) == 7 else good)


replies = st.fixed_dictionaries(
    {
        "obs": mostly(good_obs, of_shape(AGENTS, OBS)),
        "state": mostly(good_state, of_shape(STATE)),
        "avail": mostly(good_mask, masks),
        "reward": mostly(floats(-1, 1), rewards),
        "terminated": mostly(st.booleans(), ends),
        "info": mostly(good_info, infos),
        "whole": mostly(st.none(), st.none() | odd),
    }
)


class Replying(ScriptedEnv):
    """Replies what it is told to."""

    def __init__(self, reply: dict):
        super().__init__(0)
        self.now = reply

    def step(self, actions):
        if self.now["whole"] is not None:
            return self.now["whole"]
        return self.now["reward"], self.now["terminated"], self.now["info"]

    def get_obs(self):
        return self.now["obs"]

    def get_state(self):
        return self.now["state"]

    def get_avail_actions(self):
        return self.now["avail"]


def check_reply(reply: dict) -> str:
    env = CheckedEnv(Replying(reply))
    env.reset()
    try:
        reward, terminated, truncated, info = env.step([0] * AGENTS)
        obs, state, avail = env.observe()
    except EnvCrash as error:
        assert_one_line(error, "env Replying, step 1 of episode 1: ")
        return REFUSED
    assert type(reward) is float
    assert np.isfinite(np.float32(reward))
    assert not (terminated and truncated)
    earned = info.pop("individual_reward")
    assert earned.shape == (AGENTS,)
    assert json.dumps(info)
    assert all(type(value) is float for value in info.values())
    for found, shape in ((obs, (AGENTS, OBS)), (state, (STATE,)), (avail, (AGENTS, ACTIONS)), (earned, (AGENTS,))):
        assert found.shape == shape
        assert np.isfinite(found).all()
    assert set(np.unique(avail)) <= {0, 1}
    assert terminated or avail.any(axis=1).all()
    assert (obs == np.asarray(reply["obs"], np.float32)).all()
    return USED


KINDS: dict[str, Kind] = {
    "command lines": Kind(command_lines(), check_command_line),
    "yaml files": Kind(yaml_files(), check_yaml_file),
    "dataset files": Kind(datasets, check_dataset_file),
    "checkpoint folders": Kind(harms(), check_checkpoint),
    "model folders": Kind(harms(), check_model),
    "environment replies": Kind(replies, check_reply),
}
