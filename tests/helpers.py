"""What several tests share: configurations, random episodes, small learners and scripted environments."""

import contextlib
import copy
import importlib.util
import json
import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from plugins.misbehaving import ACTIONS, AGENTS, LIMIT, OBS, STATE, TYPES, Episode, paid, script, shares, shown
from plugins.misbehaving import ScriptedEnv as ScriptedEnv  # tests name it as helpers:ScriptedEnv
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from components.episode_buffer import EpisodeBatch
from components.transforms import OneHot
from config.schema import Args, extend, freeze, load
from controllers import REGISTRY as mac_REGISTRY
from controllers import BasicMAC, GatedMAC
from envs.vector_env import Observation, VectorEnv, VectorStep
from learners import REGISTRY as learner_REGISTRY
from main import main
from modules.agents.sharing import assign_groups

FAKE_SC2 = Path(__file__).resolve().parent / "fake_sc2"
SIZES = {"n_agents": AGENTS, "n_actions": ACTIONS, "obs_shape": OBS, "state_shape": STATE, "episode_limit": LIMIT}


# --- the stand-in for StarCraft II


def fake_sc2(name: str) -> ModuleType:
    """A module of the stand-in game, which is no package."""
    spec = importlib.util.spec_from_file_location(f"fake_sc2_{name}", FAKE_SC2 / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


# --- configurations


def make_args(alg: str, env="matrix_games", unchecked=None, **overrides) -> Args:
    """The args of a run of `--config=alg`, with small networks, for an environment of the sizes above.

    What stands in `unchecked` replaces keys after the configuration was checked.
    """
    small = {"rnn_hidden_dim": 8, "mixing_embed_dim": 6, "hypernet_embed": 5, "use_cuda": False}
    config = load(alg, env, {**small, **overrides})
    args = freeze({**config, **(unchecked or {})})
    groups = assign_groups(args, AGENTS)
    return extend(args, device="cpu", unique_token="test", agent_groups=groups, **SIZES)


def make_scheme(args) -> tuple[dict, dict, dict]:
    """Scheme, groups and preprocess of a run, as `run.py` makes them; numbers have torch's default type."""
    number = torch.get_default_dtype()
    scheme = {
        "state": {"vshape": args.state_shape, "dtype": number},
        "obs": {"vshape": args.obs_shape, "group": "agents", "dtype": number},
        "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
        "avail_actions": {"vshape": (args.n_actions,), "group": "agents", "dtype": torch.int},
        "reward": {"vshape": (1,), "dtype": number},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
    }
    owned = hasattr(args, "heads") and args.heads.reward_independent == "individual"
    if owned or (hasattr(args, "iac") and args.iac.reward == "individual"):
        scheme["individual_reward"] = {"vshape": (args.n_agents,), "dtype": number}
    stored = hasattr(args, "behaviour") and args.behaviour.source == "stored"
    if stored or getattr(learner_REGISTRY[args.learner], "reads_behaviour", False):
        scheme["behaviour"] = {"vshape": (args.n_actions,), "group": "agents", "dtype": number}
    return scheme, {"agents": args.n_agents}, {"actions": ("actions_onehot", [OneHot(args.n_actions)])}


# --- random episodes


EPISODES = (Episode(6, "terminated"), Episode(3, "terminated"), Episode(6, "limit"), Episode(4, "early"))


def random_batch(args, seed: int, episodes=EPISODES, scale: float = 1.0) -> EpisodeBatch:
    """A batch of these episodes with random contents; what lies behind their final observations is zero.

    Individual rewards, which sum to the team's, and behaviour probabilities are there if the scheme has them. The other
    contents are the same whether they are or not.
    """
    rng, more = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    N, A = args.n_agents, args.n_actions
    batch = EpisodeBatch(*make_scheme(args)[:2], len(episodes), LIMIT + 1, preprocess=make_scheme(args)[2])
    for e, episode in enumerate(episodes):
        for t in range(episode.length + 1):
            avail = rng.random((N, A)) < 0.6
            avail[np.arange(N), rng.integers(A, size=N)] = True
            seen = {
                "obs": rng.normal(size=(1, N, args.obs_shape)),
                "state": rng.normal(size=(1, args.state_shape)),
                "avail_actions": avail[None].astype(int),
            }
            batch.update(seen, bs=e, ts=t)
            if t == episode.length:
                break
            last = t == episode.length - 1
            taken = {
                "actions": [[rng.choice(np.flatnonzero(avail[i])) for i in range(N)]],
                "reward": [[scale * rng.normal()]],
                "terminated": [[last and episode.end == "terminated"]],
            }
            if "individual_reward" in batch.scheme:
                shares = scale * more.normal(size=N)
                taken["individual_reward"] = [shares + (taken["reward"][0][0] - shares.sum()) / N]
            if "behaviour" in batch.scheme:
                likely = avail * more.uniform(0.2, 1.0, size=(N, A))
                taken["behaviour"] = [likely / likely.sum(axis=1, keepdims=True)]
            batch.update(taken, bs=e, ts=t, mark_filled=False)
    return batch


def corrupt_padding(batch, episodes, seed=5, size=1e6):
    """Wild values wherever a transition is not: behind the ends, and what is no part of the final observation."""
    generator = torch.Generator().manual_seed(seed)
    fields = batch.data.transition_data
    for e, episode in enumerate(episodes):
        for name, value in fields.items():
            if name == "filled":
                continue
            start = episode.length + (name in ("obs", "state", "avail_actions") and episode.end != "terminated")
            place = value[e, start:]
            if name in ("obs", "state", "reward", "individual_reward"):
                place.copy_(size * torch.randn(place.shape, generator=generator))
            else:
                high = batch.scheme["avail_actions"]["vshape"][0] if name == "actions" else 2
                place.copy_(torch.randint(high, place.shape, generator=generator))
            if name == "avail_actions":
                place[..., 0] = 1  # as every environment of this project does
    return batch


def without_last_actions(batch, episodes=EPISODES):
    """Nothing is available after a termination, as in environments that do not care about what they show then."""
    for e, episode in enumerate(episodes):
        if episode.end == "terminated":
            batch["avail_actions"][e, episode.length] = 0
    return batch


# --- learners


class RecordingLogger:
    """In place of `utils.logging.Logger`: keeps what is logged."""

    def __init__(self):
        self.stats: dict[str, list[tuple[int, float]]] = {}
        self.console_logger = logging.getLogger("test")

    def log_stat(self, key, value, t, to_sacred=True):
        self.stats.setdefault(key, []).append((t, float(value)))


def make_full_scheme(args) -> dict:
    """The scheme with derived fields, as controllers and learners get it."""
    scheme, groups, preprocess = make_scheme(args)
    return EpisodeBatch(scheme, groups, 1, 1, preprocess=preprocess).scheme


def make_mac(args, seed: int = 0, mac_class=None):
    """A controller with weights drawn from `seed`: the one that `args` names, or of this class."""
    torch.manual_seed(seed)
    return (mac_class or mac_REGISTRY[args.mac])(make_full_scheme(args), make_scheme(args)[1], args)


def make_learner(args, seed: int = 0, mac_class=None):
    """The learner that `args` names, with weights drawn from `seed`."""
    mac = make_mac(args, seed, mac_class)
    return learner_REGISTRY[args.learner](mac, make_full_scheme(args), RecordingLogger(), args)


def networks(learner) -> dict[str, nn.Module]:
    """The learner's networks by name."""
    found = {"agent": learner.mac.agent}
    if hasattr(learner, "target_mac"):
        found["target_agent"] = learner.target_mac.agent
    found |= getattr(learner, "networks", {})  # of actor-critics
    if getattr(learner, "mixer", None) is not None:
        found |= {"mixer": learner.mixer, "target_mixer": learner.target_mixer}
    if hasattr(learner, "independent"):
        found |= {"independent": learner.independent.agent, "target_independent": learner.target_independent.agent}
        found |= {"slow_independent": learner.slow_independent.agent, "slow_critic": learner.slow_critic}
    if hasattr(learner, "slow_mac"):
        found |= {"slow_agent": learner.slow_mac.agent, "slow_mixer": learner.slow_mixer}
    if hasattr(learner, "central_mac"):
        found |= {"central_agent": learner.central_mac.agent, "target_central_agent": learner.target_central_mac.agent}
        found |= {"central_mixer": learner.central_mixer, "target_central_mixer": learner.target_central_mixer}
    if getattr(learner, "behaviour", None) is not None:
        found["behaviour"] = learner.behaviour
    return found


def shake(learner, seed: int, size: float = 0.5) -> None:
    """Move all networks of a learner to different weights, as they are in the middle of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for network in networks(learner).values():
            for parameter in network.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def weights(learner) -> dict[str, torch.Tensor]:
    """Copies of the weights of all networks of a learner."""
    return {
        f"{name}.{key}": value.clone()
        for name, network in networks(learner).items()
        for key, value in network.state_dict().items()
    }


def gate_state(learner) -> dict[str, torch.Tensor | None]:
    """Copies of what a greedy learner remembers besides its networks; nothing for others."""
    running = ("gap_ema", "value_ema", "excess_ema", "excess_known", "td_ema", "target_std", "reward_std")
    names = (*running, "log_multipliers", "log_coefficients", "weights", "slope_ema")
    return {name: copy.deepcopy(getattr(learner, name)) for name in names if hasattr(learner, name)}


def gradients(learner, loss: torch.Tensor) -> list[torch.Tensor]:
    """The gradient of `loss` in the learner's parameters; 0 where it does not depend on one."""
    found = torch.autograd.grad(loss, learner.params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(learner.params, found, strict=True)]


def assert_equal(first: dict, second: dict) -> None:
    """Two dicts of tensors hold the same keys and, bit for bit, the same values."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        if value is None:
            assert second[key] is None, key
        else:
            assert torch.equal(value, second[key]), key


def differs(first: dict, second: dict) -> bool:
    return any(not torch.equal(value, second[key]) for key, value in first.items())


def on_filled(batch, x):
    """What (B, T, ...) says of the steps that the batch holds, 0 in padding."""
    filled = batch["filled"]
    return x * filled.reshape(*filled.shape[:2], *(1,) * (x.dim() - 2)).to(x.dtype)


def step_by_step(mac, batch) -> torch.Tensor:
    """The controller's values of all steps by PyMARL's `forward`, one step after another: (B, T+1, N, A)."""
    mac.init_hidden(batch.batch_size)
    return torch.stack([mac.forward(batch, t) for t in range(batch.max_seq_length)], dim=1)


def values_on(mac, network, batch, inputs_of: int, seen_by: int) -> torch.Tensor:
    """What agent `seen_by`'s network says of the history of agent `inputs_of`, step by step: (B, T+1, X)."""
    inputs = mac._build_sequence_inputs(batch)
    steps, B, N, _ = inputs.shape
    rows = inputs[:, :, [inputs_of] * N]  # shown to all agents
    if mac.args.obs_agent_id:
        rows = torch.cat([rows[..., :-N], torch.eye(N).expand(steps, B, N, N)], dim=-1)
    hidden = network.init_hidden()
    hidden = hidden.repeat(B * N // len(hidden), 1)
    values = []
    for step in rows.reshape(steps, B * N, -1):
        found, hidden = network(step, hidden)
        values.append(found.view(B, N, -1)[:, seen_by])
    return torch.stack(values, dim=1)


def wild_noise(avail: torch.Tensor) -> torch.Tensor:
    return torch.randn(avail.shape, generator=torch.Generator().manual_seed(1)) * (avail == 0)


class WildMAC(BasicMAC):
    """A controller whose values of unavailable actions are huge; `wild` scales them."""

    wild = 0.0

    def unroll(self, batch, test_mode=False):
        return super().unroll(batch, test_mode) + self.wild * wild_noise(batch["avail_actions"])

    def unroll_features(self, batch):
        q, memories = super().unroll_features(batch)
        return q + self.wild * wild_noise(batch["avail_actions"]), memories

    def unroll_others(self, batch, network=None):
        avail = batch["avail_actions"].unsqueeze(3).expand(-1, -1, -1, self.n_agents, -1)
        return super().unroll_others(batch, network) + self.wild * wild_noise(avail)


class WildGatedMAC(WildMAC, GatedMAC):
    """The same for the values of two networks, and the logits of actors."""

    def unroll_heads(self, batch):
        noise = self.wild * wild_noise(batch["avail_actions"])
        independent, cooperative = super().unroll_heads(batch)
        return independent + noise, cooperative - noise

    def unroll_imitation(self, batch):
        output = super().unroll_imitation(batch)
        return output if self.agent.actor is None else output + self.wild * wild_noise(batch["avail_actions"])


class RootMixer(nn.Module):
    """A mixer whose value is finite and whose gradient is not: sqrt of exactly 0."""

    def __init__(self, args):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, agent_qs, states):
        return self.scale * agent_qs.sum(dim=2, keepdim=True) + (agent_qs.sum(dim=2, keepdim=True) * 0).sqrt()


# --- scripted environments (plugins/misbehaving.py): everything that they show says where it was shown


class ScriptedVectorEnv(VectorEnv):
    """The environments of `ScriptedEnv`, `seed` to `seed + n_envs - 1`, written as one batch."""

    n_agents, n_actions, obs_size, state_size, episode_limit = AGENTS, ACTIONS, OBS, STATE, LIMIT
    individual_reward = True
    agent_types = TYPES

    def __init__(self, n_envs: int, device, seed: int):
        self.n_envs = n_envs
        self.numbers = range(seed, seed + n_envs)
        self.episodes, self.t = [-1] * n_envs, [0] * n_envs
        self.closed = False

    def reset(self):
        self.episodes, self.t = [episode + 1 for episode in self.episodes], [0] * self.n_envs
        return self._observe()

    def step(self, actions):
        info = {name: torch.zeros(self.n_envs) for name in ("last_step", "number", "episode_limit")}
        reward, terminated, truncated = torch.zeros(self.n_envs), [False] * self.n_envs, [False] * self.n_envs
        for e, number in enumerate(self.numbers):
            reward[e] = paid(number, self.episodes[e], self.t[e], actions[e])
            self.t[e] += 1
        final = self._observe()
        for e, number in enumerate(self.numbers):
            plan = script(number, self.episodes[e])
            if self.t[e] == plan.length:
                terminated[e], truncated[e] = plan.end == "terminated", plan.end != "terminated"
                info["last_step"][e], info["number"][e] = self.t[e], number
                info["episode_limit"][e] = truncated[e]
                self.episodes[e], self.t[e] = self.episodes[e] + 1, 0
        ends = (torch.tensor(terminated), torch.tensor(truncated))
        individual = torch.tensor([shares(value) for value in reward.tolist()])
        return VectorStep(reward, *ends, self._observe(), final, info, individual)

    def close(self):
        self.closed = True

    def _observe(self):
        views = [shown(*where) for where in zip(self.numbers, self.episodes, self.t, strict=True)]
        return Observation(*(torch.tensor(np.stack(part)) for part in zip(*views, strict=True)))


def assert_as_scripted(batch: EpisodeBatch, env: int, episode: int, limit_is_an_end: bool = False) -> None:
    """A batch of one holds this episode: everything that was shown, also at its end, what was done, and no more."""
    plan = script(env, episode)
    length = plan.length
    assert batch.max_seq_length == LIMIT + 1
    assert batch["filled"][0, :, 0].tolist() == [1] * (length + 1) + [0] * (LIMIT - length)
    for t in range(length + 1):
        obs, state, avail = shown(env, episode, t)
        assert torch.equal(batch["obs"][0, t], torch.tensor(obs))
        assert torch.equal(batch["state"][0, t], torch.tensor(state))
        assert torch.equal(batch["avail_actions"][0, t], torch.tensor(avail))
    for t in range(length):
        actions = batch["actions"][0, t, :, 0]
        assert batch["avail_actions"][0, t].gather(1, actions.unsqueeze(1)).all(), "an unavailable action was taken"
        assert batch["reward"][0, t].item() == paid(env, episode, t, actions), "stored actions are not those played"
    is_end = limit_is_an_end or plan.end == "terminated"
    assert batch["terminated"][0, :, 0].tolist() == [0] * (length - 1) + [int(is_end)] + [0] * (LIMIT + 1 - length)
    for field, value in batch.data.transition_data.items():
        behind = length + (field in ("obs", "state", "avail_actions", "filled"))
        assert not value[0, behind:].any(), f"{field} is not zero behind the episode"


def assert_records(batch: EpisodeBatch, mac, epsilon: float) -> None:
    """The episodes hold each agent's share of the rewards, and the probabilities that its actions were drawn with."""
    greedy = masked_greedy(mac.unroll(batch), batch)
    for e in range(batch.batch_size):
        length = int(batch["filled"][e].sum()) - 1
        for t in range(length):
            expected = torch.tensor(shares(batch["reward"][e, t].item()))
            torch.testing.assert_close(batch["individual_reward"][e, t], expected)
            avail = batch["avail_actions"][e, t].float()
            policy = epsilon * avail / avail.sum(dim=1, keepdim=True)
            policy[torch.arange(len(policy)), greedy[e, t]] += 1 - epsilon
            torch.testing.assert_close(batch["behaviour"][e, t], policy)
            assert (batch["behaviour"][e, t].gather(1, batch["actions"][e, t]) > 0).all()


def masked_greedy(q: torch.Tensor, batch) -> torch.Tensor:
    """The best available actions (B, T, N); of padding, action 0."""
    return q.masked_fill(batch["avail_actions"] == 0, -torch.inf).argmax(dim=3)


def sharpen(mac, factor: float = 3.0) -> None:
    """Enlarge the weights, so that actions depend on observations and memory more than on biases."""
    with torch.no_grad():
        for parameter in mac.parameters():
            parameter.mul_(factor)


# --- processes


def wait_until(condition, seconds: float = 60.0) -> None:
    """Wait for something that happens soon, on an idle machine at once."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"nothing happened within {seconds:g} s"
        time.sleep(0.005)


def process_table() -> dict[int, tuple[str, int, int]]:
    """Every process's state (Z: ended, but its parent did not ask how), parent and group."""
    table = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
            table[int(path.parent.name)] = (state, int(parent), int(group))
    return table


def group_of(leader: int) -> list[int]:
    """The processes of a group, zombies included."""
    return [pid for pid, (_, _, group) in process_table().items() if group == leader]


def zombies() -> set[int]:
    """Those of this process."""
    return {pid for pid, (state, parent, _) in process_table().items() if state == "Z" and parent == os.getpid()}


def command_of(pid: int) -> str:
    """Empty if there is no such process, or no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def started_under(mark: str, git: bool = False) -> dict[int, str]:
    """The living processes that were started since `nothing_left` has set this mark, by whomever: their commands.

    Args:
        git: also git, which sacred keeps for as long as it runs.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if mark.encode() in path.read_bytes():
                found[int(path.parent.name)] = command_of(int(path.parent.name))
    return {pid: command for pid, command in found.items() if git or not command.startswith("git ")}


@contextlib.contextmanager
def nothing_left(tmp_path, monkeypatch):
    """What is started inside leaves no process, no zombie and no worker's folder. Yields (mark, temporary folder)."""
    mark, temporary, before = f"nothing_left_{uuid.uuid4()}", tmp_path / "temporary", zombies()
    temporary.mkdir()
    monkeypatch.setenv("MARK_OF_A_TEST", mark)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # that it looks at TMPDIR again
    yield mark, temporary
    left = started_under(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, left
    assert zombies() <= before
    folders = list(temporary.glob("env-*"))
    assert not folders, folders


def bury_orphans() -> None:
    """Reap the children of processes that were killed: this process has adopted them if it has ever had a `Guard`."""

    def all_are_buried() -> bool:
        mine = {pid: state for pid, (state, parent, _) in process_table().items() if parent == os.getpid()}
        dead = [pid for pid, state in mine.items() if state == "Z"]
        for pid in dead:
            os.waitpid(pid, 0)
        return not dead and all(command_of(pid) for pid in mine)  # who is about to end has lost its command already

    wait_until(all_are_buried)


# --- whole runs


def run_main(*argv: str) -> int:
    """The exit code of `python src/main.py` with these arguments, in this process."""
    logging.getLogger("greed").handlers.clear()  # a handler of an earlier test writes to that test's closed stream
    try:
        return main(["src/main.py", *argv])
    except SystemExit as end:
        return 0 if end.code is None else int(end.code)


def error_line(capsys) -> str:
    """What the command line wrote to stderr since the last call: one line that starts with `error: `."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def read_run(results, number: int = 1) -> dict:
    """Sacred's record of a run: `status`, `metrics` (name -> {steps, values}), `config`, `cout`."""
    folder = results / "sacred" / str(number)
    record = json.loads((folder / "run.json").read_text())
    return {
        "status": record["status"],
        "config": json.loads((folder / "config.json").read_text()),
        "metrics": json.loads((folder / "metrics.json").read_text()) if (folder / "metrics.json").exists() else {},
        "cout": (folder / "cout.txt").read_text(),
    }


# --- what the host reads


class HostReads(TorchDispatchMode):
    """Names of what happens inside and would let the host wait for a GPU: values that Python or numpy reads, and
    shapes that depend on them. Tests count them on a CPU, where nothing has to wait."""

    METHODS = ("tolist", "numpy", "cpu")  # on a CPU these call no operation
    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "multinomial")

    def __enter__(self):
        self.found: list[str] = []
        self.kept = {name: getattr(torch.Tensor, name) for name in self.METHODS}
        for name, method in self.kept.items():
            setattr(torch.Tensor, name, self._counted(name, method))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self.kept.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in self.OPERATIONS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))

    def _counted(self, name, method):
        def call(tensor, *args, **kwargs):
            self.found.append(name)
            return method(tensor, *args, **kwargs)

        return call
