"""docs/plugins.md carries GreedyQLearner into PyMARL and EPyMARL: its commands run here on small stand-ins of both."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import SIZES, make_args, make_learner, random_batch

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/plugins.md").read_text()
COMMANDS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
START = "learners/greedy_q_learner.py"
TREES = {"pymarl": COMMANDS[:1], "epymarl": COMMANDS[:2]}


# What stands in for the other project: the few files that its runs need, in its own style.

DEFAULT = """
runner: "episode"
mac: "basic_mac"
env: "sc2"
env_args: {}
batch_size_run: 1
learner_log_interval: 2000
t_max: 10000
use_cuda: True
gamma: 0.99
batch_size: 32
buffer_size: 32
lr: 0.0005
critic_lr: 0.0005
optim_alpha: 0.99
optim_eps: 0.00001
grad_norm_clip: 10
agent: "rnn"
rnn_hidden_dim: 64
obs_agent_id: True
obs_last_action: True
"""

BATCH = """
import torch as th


class EpisodeBatch:
    def __init__(self, data):
        self.data = data
        self.scheme = {k: {"vshape": v.shape[-1] if k in ("obs", "state") else v.shape[-1:]} for k, v in data.items()}
        self.batch_size, self.max_seq_length = data["filled"].shape[:2]
        self.device = "cpu"

    def __getitem__(self, item):
        if item not in self.data:
            raise ValueError
        return self.data[item]
"""

SELECTOR = """
REGISTRY = {}


class EpsilonGreedyActionSelector():
    def __init__(self, args):
        self.schedule = (args.epsilon_start, args.epsilon_finish, args.epsilon_anneal_time)


REGISTRY["epsilon_greedy"] = EpsilonGreedyActionSelector
"""

MAC = """
from modules.agents import REGISTRY as agent_REGISTRY
from components.action_selectors import REGISTRY as action_REGISTRY
import torch as th


class BasicMAC:
    def __init__(self, scheme, groups, args):
        self.n_agents = args.n_agents
        self.args = args
        self._build_agents(self._get_input_shape(scheme))
        self.agent_output_type = args.agent_output_type
        self.action_selector = action_REGISTRY[args.action_selector](args)
        self.hidden_states = None

    def forward(self, ep_batch, t, test_mode=False):
        agent_inputs = self._build_inputs(ep_batch, t)
        agent_outs, self.hidden_states = self.agent(agent_inputs, self.hidden_states)
        return agent_outs.view(ep_batch.batch_size, self.n_agents, -1)

    def init_hidden(self, batch_size):
        self.hidden_states = self.agent.init_hidden().unsqueeze(0).expand(batch_size, self.n_agents, -1)

    def parameters(self):
        return self.agent.parameters()

    def load_state(self, other_mac):
        self.agent.load_state_dict(other_mac.agent.state_dict())

    def cuda(self):
        self.agent.cuda()

    def save_models(self, path):
        th.save(self.agent.state_dict(), "{}/agent.th".format(path))

    def load_models(self, path):
        self.agent.load_state_dict(th.load("{}/agent.th".format(path), map_location=lambda storage, loc: storage))

    def _build_agents(self, input_shape):
        self.agent = agent_REGISTRY[self.args.agent](input_shape, self.args)

    def _build_inputs(self, batch, t):
        bs = batch.batch_size
        inputs = [batch["obs"][:, t]]
        if self.args.obs_last_action:
            if t == 0:
                inputs.append(th.zeros_like(batch["actions_onehot"][:, t]))
            else:
                inputs.append(batch["actions_onehot"][:, t-1])
        if self.args.obs_agent_id:
            inputs.append(th.eye(self.n_agents, device=batch.device).unsqueeze(0).expand(bs, -1, -1))
        return th.cat([x.reshape(bs*self.n_agents, -1) for x in inputs], dim=1)

    def _get_input_shape(self, scheme):
        input_shape = scheme["obs"]["vshape"]
        if self.args.obs_last_action:
            input_shape += scheme["actions_onehot"]["vshape"][0]
        if self.args.obs_agent_id:
            input_shape += self.n_agents
        return input_shape
"""

AGENT = """
import torch.nn as nn
import torch.nn.functional as F


class RNNAgent(nn.Module):
    def __init__(self, input_shape, args):
        super(RNNAgent, self).__init__()
        self.args = args
        self.fc1 = nn.Linear(input_shape, args.rnn_hidden_dim)
        self.rnn = nn.GRUCell(args.rnn_hidden_dim, args.rnn_hidden_dim)
        self.fc2 = nn.Linear(args.rnn_hidden_dim, args.n_actions)

    def init_hidden(self):
        return self.fc1.weight.new(1, self.args.rnn_hidden_dim).zero_()

    def forward(self, inputs, hidden_state):
        x = F.relu(self.fc1(inputs))
        h = self.rnn(x, hidden_state.reshape(-1, self.args.rnn_hidden_dim))
        return self.fc2(h), h


REGISTRY = {"rnn": RNNAgent}
"""

MIXER = """
import torch as th
import torch.nn as nn


class QMixer(nn.Module):
    def __init__(self, args):
        super(QMixer, self).__init__()
        self.n_agents = args.n_agents
        self.hyper_w = nn.Linear(args.state_shape, args.n_agents)

    def forward(self, agent_qs, states):
        bs = agent_qs.size(0)
        w = th.abs(self.hyper_w(states.reshape(-1, states.size(-1)))).view(-1, self.n_agents, 1)
        return th.bmm(agent_qs.view(-1, 1, self.n_agents), w).view(bs, -1, 1)
"""

MAIN = """
import json, os, sys, yaml
from types import SimpleNamespace as SN

import torch as th

from components.episode_buffer import EpisodeBatch
from controllers.basic_controller import BasicMAC
from learners import REGISTRY as le_REGISTRY


def recursive_dict_update(d, u):
    for k, v in u.items():
        d[k] = recursive_dict_update(d.get(k, {}), v) if isinstance(v, dict) else v
    return d


class Logger:
    def __init__(self):
        self.stats = {}

    def log_stat(self, key, value, t, to_sacred=True):
        self.stats.setdefault(key, []).append((t, value))


def run(job):
    config = {}
    for name in ("default.yaml", "algs/greedy_qmix.yaml"):
        recursive_dict_update(config, yaml.safe_load(open("src/config/" + name)))
    args = SN(**recursive_dict_update(config, job["with"]), **job["sizes"])
    batch = EpisodeBatch(th.load("batch.th"))
    logger = Logger()
    mac = BasicMAC(batch.scheme, {"agents": args.n_agents}, args)
    learner = le_REGISTRY[args.learner](mac, batch.scheme, logger, args)
    if "load" in job:
        learner.load_models(job["load"])
    for episode in range(job["updates"]):
        learner.train(batch, episode, episode)
    if "save" in job:
        os.makedirs(job["save"])
        learner.save_models(job["save"])
    return logger.stats


th.set_default_dtype(th.float64)
results = []
for job in json.loads(sys.argv[1]):
    try:
        results.append(run(job))
    except Exception as error:
        results.append("{}: {}".format(type(error).__name__, error))
print(json.dumps(results))
"""

FILES = {  # by path below src
    "config/default.yaml": DEFAULT,
    "components/__init__.py": "",
    "components/episode_buffer.py": BATCH,
    "components/action_selectors.py": SELECTOR,
    "controllers/__init__.py": "",
    "controllers/basic_controller.py": MAC,
    "learners/__init__.py": 'from .q_learner import QLearner\n\nREGISTRY = {}\n\nREGISTRY["q_learner"] = QLearner\n',
    "learners/q_learner.py": "class QLearner:\n    theirs = True\n",
    "modules/__init__.py": "",
    "modules/agents/__init__.py": AGENT,
    "modules/mixers/__init__.py": "",
    "modules/mixers/qmix.py": MIXER,
    "utils/rl_utils.py": "theirs = True\n",
    "main.py": MAIN,
}


def stand_in(tree: str) -> dict[str, str]:
    """The files of a small PyMARL, or EPyMARL, by path below `src`."""
    if tree == "pymarl":
        return FILES
    default = DEFAULT.replace("rnn_hidden_dim", "hidden_dim").replace("critic_lr: 0.0005\n", "common_reward: True\n")
    agent = AGENT.replace("rnn_hidden_dim", "hidden_dim").replace(
        "self.rnn =", "assert args.use_rnn\n        self.rnn ="
    )
    selector = SELECTOR.replace("(args.epsilon_start", "(args.evaluation_epsilon, args.epsilon_start")
    return {
        **FILES,
        "config/default.yaml": default,
        "modules/agents/__init__.py": agent,
        "components/action_selectors.py": selector,
    }


@pytest.fixture(scope="module", params=TREES)
def there(request, tmp_path_factory):
    """A small PyMARL or EPyMARL, after the page's commands."""
    folder = tmp_path_factory.mktemp(request.param)
    for name, text in stand_in(request.param).items():
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src" / name).write_text(text)
    (folder / "src/config/algs").mkdir()
    for command in TREES[request.param]:
        subprocess.run(["bash", "-e", "-c", command], cwd=ROOT, env={**os.environ, "THERE": str(folder)}, check=True)
    return folder


# Which files


def listed() -> set[str]:
    """The files that the page copies."""
    (names,) = re.findall(r"^tar -C src -cf - (.*?)\| tar", PAGE, flags=re.DOTALL | re.MULTILINE)
    return set(names.replace("\\\n", " ").split())


def imported(source: str) -> set[tuple[str, str]]:
    """(module, name) of everything that the source imports, in functions too; the name is "" for whole modules."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports of a copy would be others"
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def file_of(module: str, name: str, root: Path) -> Path | None:
    """The file below `root` that is needed for `from module import name`, or None if nothing below it is meant."""
    folder = root.joinpath(*module.split("."))
    for path in (folder / f"{name}.py", folder.with_suffix(".py"), folder / "__init__.py"):
        if path.exists():
            return path
    return None


def test_the_list_is_what_the_learner_needs():
    src, needed, todo = ROOT / "src", set(), [ROOT / "src" / START]
    while todo:
        path = todo.pop()
        needed.add(path.relative_to(src).as_posix())
        files = {file_of(module, name, src) for module, name in imported(path.read_text())} - {None}
        todo += [file for file in files if file.relative_to(src).as_posix() not in needed]
    assert listed() == needed


def test_the_copies_import_only_each_other(there):
    """And the standard library, torch and numpy: nothing of the other project, whatever it has."""
    copies = {path.relative_to(there / "src/greed").as_posix() for path in (there / "src/greed").rglob("*.py")}
    assert copies == listed()
    for name in copies:
        for module, what in imported((there / "src/greed" / name).read_text()):
            if module.partition(".")[0] in {*sys.stdlib_module_names, "torch", "numpy"}:
                continue
            assert module.startswith("greed."), f"{name} imports {module}"
            file = file_of(module, what, there / "src")
            assert file is not None, f"{name} imports {what} from {module}, which is not copied"


def test_nothing_of_theirs_is_replaced(there, request):
    before = stand_in(request.node.callspec.params["there"])
    for name, text in before.items():
        now = (there / "src" / name).read_text()
        assert now.startswith(text) if name == "learners/__init__.py" else now == text, name
    new = {path.relative_to(there / "src").as_posix() for path in (there / "src").rglob("*.py")} - before.keys()
    assert all(name.startswith("greed/") for name in new)


# Which keys


def keys_read() -> set[str]:
    """The top-level keys of the configuration that the listed files read."""
    found = {"heads", "conservative", "gate", "munchausen", "behaviour"}  # read by name
    for name in listed():
        for node in ast.walk(ast.parse((ROOT / "src" / name).read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("args", "self.args"):
                found.add(node.attr)
    return found - {"n_agents", "n_actions", "state_shape"}  # which the training loop adds


def config_of(folder: Path) -> dict:
    names = ("default.yaml", "algs/greedy_qmix.yaml")
    return {k: v for name in names for k, v in yaml.safe_load((folder / "src/config" / name).read_text()).items()}


def test_every_key_is_there_with_the_value_that_it_has_here(there):
    ours, theirs = make_args("greedy_qmix"), config_of(there)
    assert {"optimizer", "td_lambda", "gate"} < keys_read() <= theirs.keys()
    small = {"mixing_embed_dim", "hypernet_embed"}  # helpers.make_args makes networks small
    for key in keys_read() - small - {"t_max", "learner_log_interval"}:
        value = getattr(ours, key)
        assert theirs[key] == (vars(value) if isinstance(theirs[key], dict) else value), key


# Running


def run_there(there, jobs) -> list:
    """What each of the jobs logged, or the message that it stopped with. Nothing of this project is on the path."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(there / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "src/main.py", json.dumps(jobs)], cwd=there, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def job(there, settings=(), **more) -> dict:
    """A run of a few updates with small networks; settings are those of PyMARL's command line."""
    small = {"mixing_embed_dim": 6, "hypernet_embed": 5, "learner_log_interval": 1, "t_max": 10}
    options = {**small, "hidden_dim" if "hidden_dim" in config_of(there) else "rnn_hidden_dim": 8}
    for setting in settings:
        path, _, value = setting.partition("=")
        *blocks, key = path.split(".")
        place = options
        for block in blocks:
            place = place.setdefault(block, {})
        place[key] = yaml.safe_load(value)
    return {"with": options, "sizes": SIZES, "updates": 3, **more}


def save_batch(there, args) -> None:
    batch = random_batch(args, seed=3)
    torch.save({name: batch[name] for name in batch.scheme}, there / "batch.th")


@pytest.mark.usefixtures("double")
def test_it_learns_there_what_it_learns_here(there):
    """A model of this project is loaded there, trained on the same episodes, and loaded back: the same numbers."""
    args = make_args("greedy_qmix", learner_log_interval=1, t_max=10)
    learner, again = make_learner(args, seed=1), make_learner(args, seed=2)
    save_batch(there, args)
    (there / "before").mkdir()
    learner.save_models(str(there / "before"))
    (logged,) = run_there(there, [job(there, load="before", save="after")])

    for episode in range(3):
        learner.train(random_batch(args, seed=3), episode, episode)
    assert logged.keys() == learner.logger.stats.keys()
    for name, values in learner.logger.stats.items():
        assert len(logged[name]) == 3
        torch.testing.assert_close(torch.tensor(logged[name]), torch.tensor(values), msg=lambda m, n=name: f"{n}: {m}")
    again.load_models(str(there / "after"))
    for parameter, there_too in zip(learner.params, again.params, strict=True):
        torch.testing.assert_close(parameter, there_too)


WORK = (
    ["mixer=vdn"],
    ["mixer=modules.mixers.qmix:QMixer", "td_lambda=0.6"],
    ["gate.mode=lagrange", "conservative.joint=sampled", "conservative.coefficient=lagrange", "munchausen.kl=0.1"],
    ["gate.mode=hard", "gate.metric=cert", "gate.target=cert", "munchausen.source=alt_utility"],
    ["gate.metric=realised", "gate.realised=rollout", "standardise_rewards=True"],
    ["munchausen.who=sum", "munchausen.bootstrap=soft", "conservative.joint=linear", "target_update_tau=null"],
)

STOP = {  # what the page says does not work, and what the message names
    "heads.utilities=separate": "unroll_heads",
    "munchausen.who=others": "unroll_others",
    "heads.shared_experience=1.0": "unroll_others",
    "behaviour.source=bc_rnn": "_build_sequence_inputs",
    "heads.reward_independent=individual": "no individual_reward",
    "behaviour.source=stored": "no field behaviour",
}


@pytest.mark.usefixtures("double")
def test_what_works_there_and_what_stops(there):
    save_batch(there, make_args("greedy_qmix"))
    results = run_there(there, [job(there, settings) for settings in (*WORK, *([setting] for setting in STOP))])
    for settings, logged in zip(WORK, results, strict=False):
        assert isinstance(logged, dict), f"{settings}: {logged}"
        values = torch.tensor([value for _, value in logged["loss"]])
        assert len(values) == 3
        assert torch.isfinite(values).all()
    for (setting, message), said in zip(STOP.items(), results[len(WORK) :], strict=True):
        assert f"| `{setting}`" in PAGE
        assert isinstance(said, str), f"{setting} works: take it out of the page's table"
        assert message in said
