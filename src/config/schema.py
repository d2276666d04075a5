"""The configuration: merged from yaml files and the command line, checked as a whole, then frozen.

Values have one home, the yaml files; types, ranges and allowed values have theirs here. `load` gives a plain nested
dict and `freeze` turns it into the `args` that every class is called with.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

FOLDER = Path(__file__).resolve().parent
COMMAND_LINE = "command line"
FLAGS = {"config": "algs", "env-config": "envs"}  # what each flag names: a file of this folder


class ConfigError(Exception):
    """The configuration is wrong: one line with the key, its value, where it was set, and the remedy."""

    def __init__(self, message: str):  # a key or value may hold line breaks
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


# --- types, ranges and allowed values


class Section(BaseModel):
    """The keys of one block, all of them required: what is left out here is a value, and values live in yaml."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _check_name(name: str) -> str:
    if name.lower() in ("none", "null") or not re.fullmatch(r"[^\W\d]\w*((\.[^\W\d]\w*)*:[^\W\d]\w*)?", name):
        raise ValueError("not a name")
    return name


Name = Annotated[str, AfterValidator(_check_name), Field(description="a name or package.module:ClassName")]
FileName = Annotated[str, Field(pattern=r"^[\w.-]+$", description="text of letters, digits and . _ -")]
Filled = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=2_000_000_000)]  # environments count up from it, in 32 bits
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[str, Field(pattern="^[1-9A]$", description='text "1" to "9" or "A"')]
Groups = Annotated[list[Natural], Field(min_length=1, description="a list of group numbers, one for each agent")]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Run(Section):
    """The top level."""

    name: FileName
    label: str
    seed: Seed
    seeds: Count
    t_max: Count
    use_cuda: bool
    require_cuda: bool
    torch_threads: Natural
    precision: Literal["float32", "tf32", "bf16"]
    compile: bool
    local_results_path: Filled
    env: Name
    runner: Name
    batch_size_run: Count
    env_deadline: Positive
    env_crash_limit: Count
    env_lockstep: bool
    overlap: bool
    bootstrap_time_limit: bool
    test_nepisode: Count
    test_interval: Count
    test_greedy: bool
    test_epsilon: Share
    log_interval: Count
    runner_log_interval: Count
    learner_log_interval: Count
    use_tensorboard: bool
    plot: bool
    save_model: bool
    save_model_interval: Count
    checkpoint_path: str
    load_step: Natural
    resume: str
    checkpoint_interval: NonNegative
    keep_checkpoints: Count
    max_hours: Positive | None
    evaluate: bool
    save_replay: bool
    render: bool
    save_dataset: str
    offline: bool
    dataset: str
    buffer_size: Count
    buffer_cpu_only: bool
    replay_dtype: Literal["float32", "float16", "uint8"]
    batch_size: Count
    updates_per_episode: Positive
    gamma: Decay
    lr: Positive
    lr_finish: NonNegative | None
    critic_lr: Positive
    optimizer: Literal["rmsprop", "adam"]
    optim_alpha: Decay
    optim_eps: Positive
    grad_norm_clip: Positive
    on_nonfinite: Literal["stop", "skip"]
    standardise_rewards: bool
    mac: Name
    share: Literal["all", "none", "groups"]
    share_groups: Groups | None
    agent: Name
    rnn_hidden_dim: Count
    obs_agent_id: bool
    obs_last_action: bool
    agent_output_type: Literal["q", "pi_logits"]
    action_selector: Name
    epsilon_start: Share
    epsilon_finish: Share
    epsilon_anneal_time: Count
    learner: Name
    mixer: Name | None
    double_q: bool
    td_lambda: Share
    target_update_interval: Count | None
    target_update_tau: PositiveShare | None
    mixing_embed_dim: Count
    hypernet_layers: Annotated[int, Field(ge=1, le=2)]
    hypernet_embed: Count
    num_kernel: Count
    adv_hypernet_layers: Annotated[int, Field(ge=1, le=3)]
    adv_hypernet_embed: Count
    quantiles: Count
    critic: Name | None
    critic_hidden_dim: Count
    critic_train_reps: Count
    entropy_coef: NonNegative
    gumbel_temperature: Positive
    logit_coef: NonNegative
    opt_loss: NonNegative
    nopt_min_loss: NonNegative
    qtran_arch: Literal["qtran_paper", "coma_critic"]
    network_size: Literal["small", "big"]
    neighbour_temperature: Positive
    repeat_id: int


class Heads(Section):
    utilities: Literal["shared", "separate"]
    act: Literal["shared", "independent", "cooperative", "global", "agent", "distil"]
    reward_independent: Literal["team", "individual"]
    shared_experience: NonNegative
    normalise_loss: bool


class Conservative(Section):
    alpha_independent: NonNegative
    alpha_cooperative: NonNegative
    op: Literal["lse", "max", "lse_beta", "lse_mean", "softmax", "uniform", "policy"]
    temperature: Positive
    joint: Literal["cf", "cf_weighted", "max", "sampled", "linear", "policy"]
    samples: Count
    shift_weight: NonNegative
    coefficient: Literal["fixed", "lagrange"]
    threshold: NonNegative
    eta: Positive
    l_max: Positive
    coefficient_max: Positive


class Gate(Section):
    mode: Literal["direct", "hard", "lagrange", "fixed", "none"]
    metric: Literal["gap", "over", "cert", "realised", "td"]
    acts_on: Literal["loss", "penalty", "none"]
    target: Literal["own", "min", "soft", "cert"]
    op: Literal["max", "lse", "lse_beta", "lse_mean", "softmax", "uniform", "policy"]
    joint: Literal["auto", "max", "cf", "cf_per_gain", "sampled", "linear", "policy"]
    realised: Literal["match", "is", "rollout"]
    min_rows: Count
    importance_clip: Annotated[float, Field(ge=1)]
    rollout_interval: Count
    rollout_episodes: Count
    p: Positive
    eps: Positive
    prior_cooperative: Annotated[float, Field(gt=0, lt=1)]
    ema: Decay
    floor: Annotated[float, Field(ge=0, lt=0.5)]
    weight_independent: Share
    eta: Positive
    l_max: Positive
    form: Literal["exp", "gradient"]
    threshold: NonNegative | None


class Munchausen(Section):
    source: Literal["alt_counterfactual", "alt_utility", "self", "none"]
    who: Literal["own", "sum", "others", "author"]
    alpha: Share
    kl: NonNegative
    tau: Positive
    l0: Annotated[float, Field(le=0)]
    clip: Literal["scaled", "unscaled"]
    bootstrap: Literal["soft", "hard"]
    alternative_ema: PositiveShare


class Behaviour(Section):
    source: Literal["empirical", "stored", "bc_rnn", "cvae_joint"]
    hidden_dim: Count
    latent_dim: Count
    samples: Count
    kl_weight: NonNegative
    lr: Positive


class Weighting(Section):
    rule: Literal["optimistic", "central"]
    alpha: PositiveShare
    central_loss: Positive
    central_embed_dim: Count


class Regulariser(Section):
    divergence: Literal["kl", "mmd", "support"]
    alpha: NonNegative
    in_values: bool
    support: PositiveShare
    coefficient: Literal["fixed", "lagrange"]
    threshold: NonNegative
    eta: Positive
    l_max: Positive


class Implicit(Section):
    policy_temperature: Positive
    value_temperature: Positive


class PPO(Section):
    epochs: Count
    clip: Annotated[float, Field(gt=0, lt=1)]
    value_clip: Positive | None
    normalise_values: bool


class IAC(Section):
    reward: Literal["team", "individual"]
    shared_experience: NonNegative


class Graph(Section):
    edges: Literal["full", "cycle", "line", "star", "none"]
    reduce: Literal["mean", "sum"]
    payoff_rank: Count | None
    payoff_hidden_dim: Count | None
    iterations: Natural


class Smax(Section):
    map_name: Filled
    seed: Seed | None
    reward_scale: Positive
    time_limit: Count | None
    scale_state: bool
    see_enemy_actions: bool
    walls_cause_death: bool
    attack_mode: Literal["closest", "random"]


class MatrixGames(Section):
    game: Filled
    k: Annotated[float, Field(le=0)]
    repeats: Count | None
    seed: Seed | None


class GreedGames(Section):
    game: Filled
    kappa: Share | None
    n_agents: Annotated[int, Field(ge=2)] | None
    spectators: Natural
    reward_noise: NonNegative
    noise_dims: Natural
    rewards: Literal["team", "individual"]
    seed: Seed | None


class StagHunt(Section):
    n_agents: Count
    n_stags: Count
    size: Count
    sight: Natural
    catchers: Count
    reward: float
    punishment: Annotated[float, Field(le=0)]
    time_limit: Count
    seed: Seed | None


class Gymma(Section):
    key: Filled
    time_limit: Count
    seed: Seed | None
    kwargs: dict[str, Any]


class StarCraft2(Section):
    continuing_episode: bool
    difficulty: Level | Annotated[int, Field(ge=1, le=9)]
    game_version: Filled | None
    map_name: Filled
    move_amount: Positive
    obs_all_health: bool
    obs_instead_of_state: bool
    obs_last_action: bool
    obs_own_health: bool
    obs_pathing_grid: bool
    obs_terrain_height: bool
    obs_timestep_number: bool
    reward_death_value: NonNegative
    reward_defeat: float
    reward_negative_scale: NonNegative
    reward_only_positive: bool
    reward_scale: bool
    reward_scale_rate: Positive
    reward_sparse: bool
    reward_win: float
    replay_dir: str
    replay_prefix: str
    state_last_action: bool
    state_timestep_number: bool
    step_mul: Count
    seed: Seed | None
    heuristic_ai: bool
    heuristic_rest: bool
    debug: bool


class StarCraft2V2(StarCraft2):
    obs_own_pos: bool
    obs_starcraft: bool
    fully_observable: bool
    conic_fov: bool
    num_fov_actions: Count
    use_unit_ranges: bool
    min_attack_range: NonNegative
    kill_unit_step_mul: Count
    prob_obs_enemy: Share
    action_mask: bool
    capability_config: dict[str, Any]


METHOD_BLOCKS: dict[str, type[Section]] = {
    "heads": Heads,
    "conservative": Conservative,
    "gate": Gate,
    "munchausen": Munchausen,
    "behaviour": Behaviour,
}
BLOCKS: dict[str, type[Section]] = {
    **METHOD_BLOCKS,
    "weighting": Weighting,
    "ppo": PPO,
    "iac": IAC,
    "regulariser": Regulariser,
    "graph": Graph,
    "implicit": Implicit,
}
# The blocks that each learner of this project reads; plug-ins may have any.
LEARNER_BLOCKS: dict[str, tuple[str, ...]] = {
    "q_learner": (),
    "quantile_q_learner": (),
    "lica_learner": (),
    "greedy_lica_learner": ("conservative", "gate", "munchausen", "behaviour"),
    "maddpg_learner": (),
    "behaviour_regularised_learner": ("regulariser", "behaviour"),
    "greedy_maddpg_learner": ("conservative", "gate", "munchausen", "behaviour"),
    "ppo_learner": ("ppo",),
    "coma_learner": (),
    "iac_learner": ("iac",),
    "icq_learner": ("implicit",),
    "greedy_q_learner": tuple(METHOD_BLOCKS),
    "greedy_quantile_q_learner": tuple(METHOD_BLOCKS),
    "qtran_learner": (),
    "weighted_q_learner": ("weighting",),
    "dcg_learner": ("graph",),
    "feature_q_learner": (),
}
# Mixers that not every learner can use, and the learners of this project that can.
LEARNERS_OF_MIXER: dict[str, tuple[str, ...]] = {
    "qtran_base": ("qtran_learner",),
    "qtran_alt": ("qtran_learner",),
    "qcgraph": ("qtran_learner",),
    "qcgraph_qmix": ("feature_q_learner",),
    "dmaq": ("q_learner", "weighted_q_learner"),
}
GREEDY_ACTOR_CRITICS = ("greedy_lica_learner", "greedy_maddpg_learner")
SAMPLED_ACTOR_CRITICS = ("maddpg_learner", "greedy_maddpg_learner", "behaviour_regularised_learner")
# The actor-critics, and the critics of this project that each of them can ask.
CRITICS_OF_LEARNER: dict[str, tuple[str, ...]] = {
    "lica_learner": ("lica",),
    "greedy_lica_learner": ("lica",),
    "ppo_learner": ("value", "central_value"),
    "coma_learner": ("coma",),
    "iac_learner": ("value", "central_value"),
    **dict.fromkeys(SAMPLED_ACTOR_CRITICS, ("maddpg", "lica")),  # a critic of probabilities can be asked at actions
    "icq_learner": ("icq",),
}
# Learners of this project whose losses hold for the play of their own present policies alone.
ON_POLICY = ("lica_learner", "greedy_lica_learner", "ppo_learner", "coma_learner", "iac_learner")
ENV_ARGS: dict[str, type[Section]] = {
    "smax": Smax,
    "matrix_games": MatrixGames,
    "greed_games": GreedGames,
    "stag_hunt": StagHunt,
    "gymma": Gymma,
    "sc2": StarCraft2,
    "sc2v2": StarCraft2V2,
}
TOP_LEVEL = (*Run.model_fields, *BLOCKS, "env_args", "plugin")


def allowed(model: type[Section], key: str, null: str = "null") -> str:
    """In words, what `key` may be."""
    return ", or ".join(_in_words(option, null) for option in _options(model, key))


def _options(model: type[Section], key: str) -> list[dict]:
    spec = model.model_json_schema()["properties"][key]
    return spec.get("anyOf", [spec])


def _in_words(spec: dict, null: str) -> str:
    if "description" in spec:
        return spec["description"]
    if "enum" in spec:
        return "one of " + ", ".join(spec["enum"])
    if spec["type"] not in ("integer", "number"):
        texts = {"boolean": "True or False", "string": "text", "object": "a block of keys", "null": null}
        return ("non-empty " if spec.get("minLength") else "") + texts[spec["type"]]
    noun = "an integer" if spec["type"] == "integer" else "a number"
    least, above = spec.get("minimum"), spec.get("exclusiveMinimum")
    most, below = spec.get("maximum"), spec.get("exclusiveMaximum")
    low = f"[{least:g}" if least is not None else f"({above:g}" if above is not None else ""
    high = f"{most:.10g}]" if most is not None else f"{below:g})" if below is not None else ""
    if low and high:
        return f"{noun} in {low}, {high}"
    bounds = {">=": least, ">": above, "<=": most, "<": below}
    return " ".join([noun, *(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)])


# --- reading files


class _StrictLoader(yaml.SafeLoader):
    """Refuses what PyYAML takes silently: a key that is given twice, and keys that are not text."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                name = repr(key.value) if isinstance(key, yaml.ScalarNode) else "that is a list or block"
                raise yaml.MarkedYAMLError(problem=f"the key {name} is not text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def config_files(kind: str) -> dict[str, Path]:
    """The files of this folder by name; `kind` is algs or envs."""
    return {path.stem: path for path in sorted((FOLDER / kind).glob("*.yaml"))}


def shown(path: Path) -> str:
    """How messages name a file: one of this project from the project's root, others as they were given."""
    return str(path.relative_to(FOLDER.parents[1])) if path.is_relative_to(FOLDER) else str(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a yaml file.

    Raises:
        ConfigError: the file cannot be read, is not yaml, or does not hold keys with values.
    """
    try:
        content = yaml.load(path.read_bytes(), Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(f"{shown(path)}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{shown(path)}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown(path)}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{shown(path)}:1: expected lines of the form `key: value`, found {content!r:.40}")
    return content


def _find_file(flag: str, name: str | None, asked: str = "") -> Path:
    """The file that `--flag=name` stands for: one of this folder, or a yaml file of the user's own.

    `asked` is how the name was asked for, if not by the flag.
    """
    files = config_files(FLAGS[flag])
    choices = f"available: {', '.join(files)}, or the path of a yaml file of your own"
    if name is None:
        raise ConfigError(f"--{flag} is missing: give --{flag}=NAME; {choices}")
    if name in files:
        return files[name]
    if name.endswith(".yaml") and Path(name).exists():
        return Path(name)
    near = [f"--{other}={name}" for other, kind in FLAGS.items() if name in config_files(kind)]
    near = near or get_close_matches(Path(name).stem, files, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"{asked or f'--{flag}={name}'}: there is no such config{hint}; {choices}")


def lineage(flag: str, path: Path) -> list[Path]:
    """The files of `flag` that this one extends, the first ancestor first, and the file itself."""
    chain = [path]
    while (parent := read_yaml(chain[0]).get("extends")) is not None:
        asked = f"extends={parent!r} ({shown(chain[0])})"
        if not isinstance(parent, str):
            raise ConfigError(f"{asked}: expected the name of a file beside it, or the path of a yaml file")
        chain.insert(0, _find_file(flag, parent, asked))
        if chain[0] in chain[1:]:
            raise ConfigError(f"{asked}: the files extend each other in a circle")
    return chain


# --- merging and checking


def load(alg: str | None, env: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The checked configuration of a run: defaults < environment < algorithm < overrides.

    Args:
        alg: what --config names: a file in algs/ without its ending, or the path of a yaml file.
        env: what --env-config names, likewise in envs/.
        overrides: nested dict of the command line's `key=value` and `block.key=value`.

    Raises:
        ConfigError: anything is wrong with them.
    """
    draft = _Draft()
    files = [FOLDER / "default.yaml"]
    files += lineage("env-config", _find_file("env-config", env))
    files += lineage("config", _find_file("config", alg))
    for path in files:
        draft.merge({key: value for key, value in read_yaml(path).items() if key != "extends"}, shown(path))
    draft.merge(overrides, COMMAND_LINE)
    draft.check(Path(str(alg)).stem)
    config = draft.config
    if config["env_args"].get("seed") is None:
        config["env_args"]["seed"] = config["seed"]
    return config


class _Draft:
    """A configuration that is being merged and checked; it remembers who set each key."""

    def __init__(self):
        self.config: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def merge(self, updates: Mapping, source: str) -> None:
        self._merge(self.config, updates, source, "")

    def _merge(self, config: dict, updates: Mapping, source: str, prefix: str) -> None:
        for key, value in updates.items():
            if not isinstance(key, str) or "." in key or not key.isprintable():
                raise ConfigError(
                    f"{prefix}{key!r} ({source}): a key is printable text without dots; in yaml, indent a block"
                )
            self.sources[prefix + key] = source
            if not isinstance(value, Mapping):
                config[key] = copy.deepcopy(value)
                continue
            if not isinstance(config.get(key), dict):
                config[key] = {}
            self._merge(config[key], value, source, f"{prefix}{key}.")

    def refuse(self, message: str, *keys: str) -> NoReturn:
        found = [f"{key}={self[key]!r} ({self.sources[key]})" for key in keys]
        raise ConfigError(f"{' and '.join(found)}: {message}")

    def __getitem__(self, dotted: str) -> Any:
        value: Any = self.config
        for part in dotted.split("."):
            value = value[part]
        return value

    def check(self, alg: str) -> None:
        blocks = {name: self.config[name] for name in (*BLOCKS, "env_args", "plugin") if name in self.config}
        self._check_section("", Run, {key: value for key, value in self.config.items() if key not in blocks})
        for name, block in blocks.items():
            if not isinstance(block, dict):
                self.refuse(f"{name} is a block of keys, set one by one as {name}.KEY=VALUE", name)
        self._check_blocks(alg)
        if env_model := self._env_model():
            self._check_section("env_args.", env_model, self.config["env_args"])
        for key in self.config["plugin"]:
            if key in TOP_LEVEL:
                self.refuse(f"{key} is a key of the project; set {key} itself, or rename yours", f"plugin.{key}")
            if not key.isidentifier() or key.startswith("_") or hasattr(Args, key):
                self.refuse("not a name that args can have; rename it", f"plugin.{key}")
        for message, *keys in _conflicts(self.config):
            self.refuse(message, *keys)

    def _env_model(self) -> type[Section] | None:
        """What env_args must hold; None for environments that are not of this project."""
        return ENV_ARGS.get(str(self.config["env"]))

    def _check_blocks(self, alg: str) -> None:
        learner = self.config["learner"]
        used = LEARNER_BLOCKS.get(learner)
        for name, model in BLOCKS.items():
            if name in self.config:
                if used is not None and name not in used:
                    first = ".".join([name, *list(self.config[name])[:1]])
                    message = f"config {alg} (learner {learner}) has no block {name}"
                    self.refuse(f"{message}; available with {', '.join(_configs_with(name))}", first)
                self._check_section(f"{name}.", model, self.config[name])
            elif name in (used or ()):
                start = " or ".join(f"--config={owner}" for owner in _configs_with(name))
                self.refuse(f"needs the block {name}; start from {start}", "learner")

    def _check_section(self, prefix: str, model: type[Section], values: dict) -> None:
        try:
            model.model_validate(values)
        except ValidationError as error:
            # An unknown key first: a misspelt key is also missing under its right name.
            first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            key = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                self._refuse_unknown(prefix, key, model)
            if first["type"] == "missing":
                owner = f"env {self.config['env']}" if prefix == "env_args." else f"learner {self.config['learner']}"
                raise ConfigError(
                    f"{prefix}{key} is missing: {owner} needs it, {allowed(model, key)}; "
                    f"the files in {shown(FOLDER)} show all keys"
                ) from None
            source = self.sources[prefix + key]
            null = "None" if source == COMMAND_LINE else "null"
            hint = _hint(prefix + key, values[key], _options(model, key), source)
            self.refuse(f"expected {allowed(model, key, null)}{hint}", prefix + key)

    def _refuse_unknown(self, prefix: str, key: str, model: type[Section]) -> NoReturn:
        """The nearest known key, in this block or another, is the likeliest remedy."""
        sections: dict[str, type[Section] | None] = {f"{name}.": block for name, block in BLOCKS.items()}
        sections |= {"": Run, "env_args.": self._env_model()}
        known = [(other, name) for other, section in sections.items() if section for name in section.model_fields]
        known += [("", name) for name in (*BLOCKS, "env_args", "plugin")]

        def likeness(candidate: tuple[str, str]) -> float:
            other, name = candidate
            return SequenceMatcher(None, key.lower(), name).ratio() + (0.05 if other == prefix else 0.0)

        best = max(known, key=likeness)
        problem = f"env {self.config['env']} has no such key" if prefix == "env_args." else "unknown key"
        if likeness(best) > 0.75:
            remedy = f"did you mean {''.join(best)}?"
        elif prefix:
            remedy = f"{prefix.rstrip('.')} has {', '.join(model.model_fields)}"
        else:
            remedy = f"docs/configuration.md has all keys; those of your own classes go below plugin, as plugin.{key}"
        self.refuse(f"{problem}; {remedy}", prefix + key)


def _configs_with(block: str) -> list[str]:
    files = config_files("algs").items()
    return [name for name, path in files if any(block in read_yaml(file) for file in lineage("config", path))]


def _hint(key: str, value: Any, options: list[dict], source: str) -> str:
    """What the user most likely meant to write, where a notation was misread."""
    kinds = {option.get("type") for option in options if "enum" not in option}
    write = None
    if isinstance(value, str):
        word = value.lower()
        if word in ("none", "null", "~") and "null" in kinds:
            write = "None" if source == COMMAND_LINE else "null"
        elif word in ("true", "false") and "boolean" in kinds:
            write = word.capitalize()
        elif re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", word):
            if "integer" in kinds and float(word).is_integer():
                write = str(int(float(word)))
            elif "number" in kinds:  # PyYAML takes 5e-4 for text, and 5.0e-4 for a number
                mantissa, e, exponent = word.partition("e")
                write = str(float(mantissa)) + (f"e{int(exponent):+d}" if e else "")
    elif isinstance(value, float) and value.is_integer() and "integer" in kinds:
        write = str(int(value))
    elif value is None and any("none" in option.get("enum", ()) for option in options):
        write = "none"
    elif "string" in kinds and value is not None and not isinstance(value, dict | list):
        write = f"{key}='\"{value}\"'" if source == COMMAND_LINE else f'"{value}"'
    return f"; write {write}" if write else ""


def _conflicts(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """What is wrong between keys that are fine one by one: the remedy and the keys."""
    if config["runner"] == "episode" and config["batch_size_run"] != 1:
        message = "the episode runner has one environment; also set batch_size_run=1, or runner=vector or parallel"
        yield message, "runner", "batch_size_run"
    if config["buffer_size"] < config["batch_size"]:
        yield "the replay must hold a batch; raise buffer_size or lower batch_size", "buffer_size", "batch_size"
    if config["target_update_interval"] is not None and config["target_update_tau"] is not None:
        message = "targets move either way, not both; set one of them to null (on the command line: None)"
        yield message, "target_update_interval", "target_update_tau"
    if config["epsilon_finish"] > config["epsilon_start"]:
        yield "exploration must not grow; lower epsilon_finish", "epsilon_start", "epsilon_finish"
    if config["learner"] in ("greedy_q_learner", "greedy_quantile_q_learner") and config["mixer"] is None:
        yield "the cooperative head needs a mixer; set mixer=qmix", "learner", "mixer"
    if config["learner"] == "weighted_q_learner" and config["mixer"] is None:
        yield "weights are for the fit of a mixer; set mixer=qmix", "learner", "mixer"
    graph = config["learner"] == "dcg_learner"
    if graph != (config["mac"] == "dcg_mac") and config["learner"] in LEARNER_BLOCKS:
        yield "a coordination graph needs both; set learner=dcg_learner and mac=dcg_mac", "learner", "mac"
    if graph and config["mixer"] is not None:
        yield "its value is the sum of utilities and payoffs; set mixer=null", "learner", "mixer"
    fitting = LEARNERS_OF_MIXER.get(str(config["mixer"]))
    if fitting is not None and config["learner"] in LEARNER_BLOCKS and config["learner"] not in fitting:
        yield f"this mixer asks for another learner; set learner={fitting[0]}, or mixer=qmix", "mixer", "learner"
    joint = [mixer for mixer, learners in LEARNERS_OF_MIXER.items() if "qtran_learner" in learners]
    if config["learner"] == "qtran_learner" and config["mixer"] not in joint and ":" not in str(config["mixer"]):
        yield "it needs a joint network; set mixer=qtran_base (or qtran_alt)", "learner", "mixer"
    if config["share_groups"] is not None and config["share"] != "groups":
        yield "there are no groups to give; set share=groups, or leave share_groups out", "share", "share_groups"
    models_behaviour = config.get("behaviour", {}).get("source") in ("bc_rnn", "cvae_joint")
    if models_behaviour and config["share"] != "all" and not config["obs_agent_id"]:
        message = "one model of the behaviour stands for agents that differ; set obs_agent_id=True"
        yield message, "behaviour.source", "share", "obs_agent_id"
    if config["mixer"] == "qcgraph" and config["qtran_arch"] != "qtran_paper":
        yield "its graph encodes features and actions; set qtran_arch=qtran_paper", "mixer", "qtran_arch"
    if (
        config["learner"] == "feature_q_learner"
        and config["mixer"] != "qcgraph_qmix"
        and ":" not in str(config["mixer"])
    ):
        yield "it hands features to its mixer; set mixer=qcgraph_qmix", "learner", "mixer"
    if config["action_selector"] == "multinomial" and config["agent_output_type"] != "pi_logits":
        yield "values are no probabilities; set agent_output_type=pi_logits", "action_selector", "agent_output_type"
    if config["resume"] and config["save_dataset"]:
        yield "episodes would be missing from the file; leave one of them empty", "resume", "save_dataset"
    if config["evaluate"] and not config["checkpoint_path"]:
        yield "which model? Set checkpoint_path=results/models/<token>", "evaluate", "checkpoint_path"
    yield from _offline_conflicts(config)
    if config["seeds"] > 1:
        yield from _seeds_conflicts(config)
    quantile = config["learner"] in ("quantile_q_learner", "greedy_quantile_q_learner")
    if quantile != (config["mac"] == "quantile_mac") and config["learner"] in LEARNER_BLOCKS:
        message = (
            "quantiles need both; set learner=quantile_q_learner (or greedy_quantile_q_learner) and mac=quantile_mac"
        )
        yield message, "learner", "mac"
    if quantile and config["td_lambda"] > 0:
        yield "quantiles learn from one-step targets; set td_lambda=0", "learner", "td_lambda"
    if config["quantiles"] > 1 and not quantile:
        yield (
            "only quantile learners have quantiles; set learner=quantile_q_learner, or quantiles=1",
            "quantiles",
            "learner",
        )
    if config["logit_coef"] > 0 and config["learner"] in set(LEARNER_BLOCKS) - set(SAMPLED_ACTOR_CRITICS):
        message = "this learner does not hold logits small; set logit_coef=0, or learner=maddpg_learner"
        yield message, "learner", "logit_coef"
    if config["learner"] in CRITICS_OF_LEARNER:
        yield from _actor_critic_conflicts(config)
    elif config["learner"] in LEARNER_BLOCKS:
        if config["critic"] is not None:
            yield "Q learners have no critic; set critic=null, or learner=lica_learner", "learner", "critic"
        if config["agent_output_type"] != "q":
            message = "what Q learners learn are values, of any size; set agent_output_type=q"
            yield message, "learner", "agent_output_type"
        if config["mac"] == "gated_mac" and "heads" not in config:
            yield "there is one head, which needs no second network; set mac=basic_mac", "learner", "mac"
        if config["entropy_coef"] > 0:
            message = "Q learners have no policy whose entropy could be raised; set entropy_coef=0"
            yield message, "learner", "entropy_coef"
    if all(name in config for name in METHOD_BLOCKS):
        yield from _method_conflicts(config)


# What is written as a batch, or can be mapped over seeds.
FOR_SEEDS: dict[str, tuple[Any, ...]] = {
    "runner": ("vector",),
    "env": ("smax", "matrix_games", "greed_games", "stag_hunt"),
    "learner": (
        "q_learner",
        "greedy_q_learner",
        "quantile_q_learner",
        "greedy_quantile_q_learner",
        "qtran_learner",
        "weighted_q_learner",
    ),
    "mac": ("basic_mac", "gated_mac", "quantile_mac"),
    "agent": ("rnn", "rnn_norm", "mlp"),
    "mixer": (None, "vdn", "vdn_mean", "qmix", "qmix_concave", "dmaq", "qtran_base", "qtran_alt"),
    "action_selector": ("epsilon_greedy", "one_at_a_time"),
    "offline": (False,),
    "evaluate": (False,),
    "compile": (False,),
    "precision": ("float32", "tf32"),
    "resume": ("",),
    "checkpoint_path": ("",),
    "save_dataset": ("",),
    "conservative.joint": ("cf", "cf_weighted", "max", "linear"),
    "gate.joint": ("auto", "cf", "cf_per_gain", "max", "linear"),
    "gate.realised": ("match", "is"),
    "behaviour.source": ("empirical", "stored"),
}


def _seeds_conflicts(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for dotted, known in FOR_SEEDS.items():
        block, _, key = dotted.rpartition(".")
        values = config.get(block, {}) if block else config
        if key in values and values[key] not in known:
            able = ", ".join("null" if one is None else f"{one}" or "nothing" for one in known)
            yield f"several seeds at once work with {able}; or set seeds=1 and start src/sweep.py", "seeds", dotted
    if config["overlap"]:
        yield "several seeds at once are collected in the learner's process; set overlap=False", "seeds", "overlap"
    if config["seed"] + config["seeds"] > 2_000_000_000:
        yield "seeds end at 2,000,000,000; lower seed", "seed", "seeds"


def _offline_conflicts(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """What is wrong between the keys about episodes in files, and with learning from them: why, and the keys."""
    if config["offline"] and not config["dataset"]:
        yield "which episodes? Set dataset=FILE; python src/dataset.py records one", "offline", "dataset"
    if config["dataset"] and not config["offline"]:
        yield "nothing is read from it while episodes are collected; set offline=True", "dataset", "offline"
    if config["save_dataset"] and config["offline"]:
        yield "no episode is collected that could be saved; leave save_dataset empty", "save_dataset", "offline"
    if config["save_dataset"] and config["evaluate"]:
        message = "python src/dataset.py records a model's play; leave save_dataset empty"
        yield message, "save_dataset", "evaluate"
    if config["overlap"] and config["learner"] in ON_POLICY:
        message = "it learns from the play of its own present policies, and this would be a round old"
        yield f"{message}; set overlap=False", "overlap", "learner"
    if config["offline"] and config["learner"] in ON_POLICY:
        message = "it learns from the play of its own present policies, which no file holds; --config=icq is for files"
        yield message, "offline", "learner"


def _actor_critic_conflicts(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Settings of Q learners that actors and their critic cannot have: why, and the keys."""
    fitting = CRITICS_OF_LEARNER[config["learner"]]
    known = {None, *(critic for critics in CRITICS_OF_LEARNER.values() for critic in critics)}
    if config["critic"] in known - {*fitting}:
        yield f"its actors learn from another critic; set critic={' or '.join(fitting)}", "learner", "critic"
    if config["agent_output_type"] != "pi_logits":
        message = "its actors have policies; set agent_output_type=pi_logits"
        yield message, "learner", "agent_output_type"
    if config["action_selector"] == "epsilon_greedy":
        message = "actors draw from their policies, not the likeliest action; set action_selector=multinomial"
        yield message, "learner", "action_selector"
    if config["mixer"] is not None:
        yield "actors have no values to mix; set mixer=null", "learner", "mixer"
    if config["mac"] in ("gated_mac", "quantile_mac"):
        yield "that controller's networks give values, no policies; set mac=basic_mac", "learner", "mac"
    if config["learner"] == "icq_learner" and config["entropy_coef"] > 0:
        yield "its actors clone what was played; set entropy_coef=0", "learner", "entropy_coef"
    if config["learner"] == "iac_learner" and config["iac"]["shared_experience"] > 0:
        if config["critic"] == "central_value":
            message = "of another agent's place only what it sees is known; set critic=value"
            yield message, "iac.shared_experience", "critic"
        if config["share"] == "all" and not config["obs_agent_id"]:
            message = "without ids agents that share parameters are one; set share=none, or obs_agent_id=True"
            yield message, "iac.shared_experience", "share", "obs_agent_id"
    if config["learner"] in GREEDY_ACTOR_CRITICS:
        yield from _greedy_actor_critic_conflicts(config)
    if config["learner"] == "behaviour_regularised_learner":
        yield from _regulariser_conflicts(config)


def _regulariser_conflicts(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """What a divergence from the behaviour policy needs: why, and the keys."""
    if config["behaviour"]["source"] != "bc_rnn":
        message = "policies are compared with what a model says of every agent's own history"
        yield f"{message}; set behaviour.source=bc_rnn", "learner", "behaviour.source"
    if config["regulariser"]["coefficient"] == "lagrange" and config["regulariser"]["threshold"] <= 0:
        message = "no divergence is below 0, so the multiplier would only grow; set regulariser.threshold above 0"
        yield message, "regulariser.coefficient", "regulariser.threshold"


def _greedy_actor_critic_conflicts(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Options of the method that need heads with greedy actions, where the actors' policies act: why, and the keys."""
    gate, munchausen = config["gate"], config["munchausen"]
    if gate["metric"] not in ("gap", "td"):
        message = "both critics value the policies that act, so what these earn does not tell them apart"
        yield f"{message}; set gate.metric=gap or td", "learner", "gate.metric"
    if gate["target"] != "own":
        yield "its critics bootstrap each on its own value; set gate.target=own", "learner", "gate.target"
    if gate["acts_on"] == "loss" and gate["mode"] != "none":
        message = "a positive factor does not change what critics apart from each other learn; the actors are weighed"
        yield f"{message} anyway; set gate.acts_on=none or penalty", "learner", "gate.acts_on"
    for block in ("conservative", "gate"):
        joint = config[block]["joint"]
        if joint not in ("policy", "cf", "auto"):
            message = "its critic is no monotone mixer of the agents' values"
            yield f"{message}; set {block}.joint=policy or {block}.joint=cf", "learner", f"{block}.joint"
        if joint == "auto":
            joint = "cf" if gate["mode"] == "lagrange" else "policy"
        if joint == "policy" and config[block]["op"] != "policy":
            message = "of all agents' actions at once only the policies' value is known"
            yield f"{message}; set {block}.op=policy or {block}.joint=cf", f"{block}.joint", f"{block}.op"
    if gate["mode"] == "lagrange" and gate["joint"] == "policy":
        yield f"{_JOINT_MULTIPLIER}; set gate.joint=auto or gate.joint=cf", "gate.mode", "gate.joint"
    if munchausen["source"] == "alt_utility":
        message = "its critic has no utilities of the agents; set munchausen.source=alt_counterfactual (or self)"
        yield message, "learner", "munchausen.source"
    if munchausen["source"] != "none" and munchausen["who"] == "others":
        message = "what a critic says of another agent's history is not asked here; set munchausen.who=own"
        yield message, "learner", "munchausen.who"
    yield from _term_conflicts(config)


_JOINT_MULTIPLIER = "a joint gap's multiplier shrinks as the data gets worse, so the gate would trust the wrong head"


def _term_conflicts(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Options of penalties, gate and regulariser that contradict each other whatever the heads are."""
    conservative, gate, munchausen = config["conservative"], config["gate"], config["munchausen"]
    for block in ("conservative", "gate"):
        if config[block]["op"] == "lse_beta" and config["behaviour"]["source"] == "empirical":
            message = "logged actions alone have no probabilities; set behaviour.source=stored (or bc_rnn, cvae_joint)"
            yield message, f"{block}.op", "behaviour.source"
    if conservative["joint"] == "cf_weighted" and config["behaviour"]["source"] == "empirical":
        message = "logged actions alone have no probabilities; set behaviour.source=bc_rnn (or stored), or"
        yield f"{message} conservative.joint=cf", "conservative.joint", "behaviour.source"
    if conservative["coefficient"] == "lagrange":
        if conservative["op"] not in ("max", "lse_beta", "policy"):
            message = (
                "its least gap is above every small threshold, so the multiplier would diverge; use max or lse_beta"
            )
            yield message, "conservative.coefficient", "conservative.op"
        elif conservative["op"] != "policy" and conservative["threshold"] <= 0:
            message = "no gap is below 0, so the multiplier would only grow; set conservative.threshold above 0"
            yield message, "conservative.coefficient", "conservative.threshold"
        if gate["mode"] == "lagrange" and gate["acts_on"] == "penalty":
            shared = config.get("heads", {}).get("utilities") == "shared"
            other = "loss" if shared else "none"
            message = "weights that are reciprocal multipliers cancel against multiplied penalties"
            yield f"{message}; set gate.acts_on={other}", "conservative.coefficient", "gate.acts_on"
    if munchausen["source"] == "none" and munchausen["kl"] > 0:
        message = "there is no policy to stay close to; set munchausen.source=alt_counterfactual, or munchausen.kl=0"
        yield message, "munchausen.source", "munchausen.kl"


def _method_conflicts(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Combinations of the method's options that make no sense: why, and the keys."""
    heads, conservative, gate = config["heads"], config["conservative"], config["gate"]
    munchausen, behaviour = config["munchausen"], config["behaviour"]
    shared = heads["utilities"] == "shared"
    gated = gate["mode"] != "none"
    if shared != (heads["act"] == "shared"):
        choice = "heads.act=shared" if shared else "heads.act=global (or independent, cooperative, agent, distil)"
        yield (
            f"shared utilities have one greedy action, separate ones two; set {choice}",
            "heads.utilities",
            "heads.act",
        )
    if not shared and config["mac"] == "basic_mac":
        yield "separate utilities need a controller with two networks; set mac=gated_mac", "heads.utilities", "mac"
    if shared and config["mac"] == "gated_mac":
        yield "shared utilities are one network; set mac=basic_mac", "heads.utilities", "mac"
    if config["learner"] == "greedy_quantile_q_learner":
        if not shared:
            yield "its heads share utilities; set heads.utilities=shared", "learner", "heads.utilities"
        if gate["target"] != "own":
            yield "it has no quantiles of a gated value; set gate.target=own", "learner", "gate.target"
        if heads["shared_experience"] > 0:
            message = "it has no quantiles of others' values; set heads.shared_experience=0"
            yield message, "learner", "heads.shared_experience"
        if munchausen["source"] != "none" and munchausen["bootstrap"] == "soft":
            yield (
                "it has no quantiles of a soft value; set munchausen.bootstrap=hard",
                "learner",
                "munchausen.bootstrap",
            )
    if heads["shared_experience"] > 0 and config["share"] == "all" and not config["obs_agent_id"]:
        message = "without ids agents that share parameters are one; set share=none, or obs_agent_id=True"
        yield message, "heads.shared_experience", "share", "obs_agent_id"
    if not gated and heads["act"] in ("global", "agent", "distil"):
        message = "without a gate nothing chooses who acts; set heads.act=cooperative, or a gate.mode"
        yield message, "gate.mode", "heads.act"
    if not shared and gated and gate["acts_on"] == "loss":
        message = "a positive factor does not change what separate networks learn; set gate.acts_on=none or penalty"
        yield message, "heads.utilities", "gate.acts_on"
    if heads["reward_independent"] == "individual" and gate["target"] != "own":
        message = "an agent's own return and the team's are on different scales; set gate.target=own"
        yield message, "heads.reward_independent", "gate.target"
    if gate["mode"] == "lagrange" and gate["joint"] in ("max", "sampled"):
        yield f"{_JOINT_MULTIPLIER}; set gate.joint=auto or gate.joint=cf", "gate.mode", "gate.joint"
    for block, options in (("conservative", conservative), ("gate", gate)):
        for key in ("op", "joint"):
            if options[key] == "policy":
                message = f"Q learners have no policies apart from their values; set {block}.{key}=max"
                yield message, "learner", f"{block}.{key}"
        joint = options["joint"]
        if joint == "auto":
            joint = "cf" if gate["mode"] == "lagrange" else "max"
        if joint == "max" and options["op"] != "max":
            message = f"only the maximum of a joint action is exact; set {block}.op=max or {block}.joint=cf"
            yield message, f"{block}.joint", f"{block}.op"
        if joint == "sampled" and options["op"] != "lse":
            message = f"samples estimate a log-sum-exp; set {block}.op=lse or {block}.joint=cf"
            yield message, f"{block}.joint", f"{block}.op"
    measures = gate["metric"] in ("over", "cert", "realised") or gate["target"] == "cert"
    if measures and gate["realised"] == "is" and behaviour["source"] == "empirical":
        message = "importance weights need the probabilities of the actions; set behaviour.source=stored"
        yield message, "gate.realised", "behaviour.source"
    if measures and gate["realised"] == "rollout" and heads["act"] not in ("shared", "global"):
        message = "rollouts are played by one head for all agents; set heads.act=global, or gate.realised=is"
        yield message, "gate.realised", "heads.act"
    if measures and gate["realised"] == "rollout" and config["test_epsilon"] > 0:
        yield "rollouts measure greedy play; set test_epsilon=0", "gate.realised", "test_epsilon"
    if measures and gate["realised"] == "rollout" and config["offline"]:
        message = "rollouts would collect episodes; set gate.realised=is (or match)"
        yield message, "gate.realised", "offline"
    if gate["mode"] == "fixed" and heads["act"] in ("agent", "distil"):
        message = "fixed weights are the same in every state; set heads.act=independent or cooperative"
        yield message, "gate.mode", "heads.act"
    if measures and gate["realised"] == "rollout" and config["runner"] not in ("vector", "parallel"):
        yield "rollouts are not played by this runner; set runner=vector", "gate.realised", "runner"
    if munchausen["source"] == "alt_utility" and munchausen["who"] != "others" and shared:
        message = (
            "with shared utilities that is the head's own policy; set munchausen.source=alt_counterfactual (or self)"
        )
        yield message, "munchausen.source", "heads.utilities"
    if munchausen["source"] != "none" and munchausen["who"] == "others":
        if munchausen["source"] == "alt_counterfactual":
            message = "a counterfactual policy belongs to its agent's own action; set munchausen.source=alt_utility"
            yield message, "munchausen.who", "munchausen.source"
        if not config["obs_agent_id"] and config["share"] == "all":
            message = "without ids all agents have one policy, so others say what the agent itself says"
            yield f"{message}; set munchausen.who=own", "munchausen.who", "obs_agent_id"
        if munchausen["kl"] > 0:
            message = "the direct KL is to one policy; set munchausen.who=own or munchausen.kl=0"
            yield message, "munchausen.who", "munchausen.kl"
    yield from _term_conflicts(config)


# --- the frozen configuration


class Args:
    """The configuration as attributes that cannot be set: `args.lr`, `args.gate.mode`, `args.env_args["map_name"]`."""

    def __init__(self, values: Mapping[str, Any]):
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:  # called for missing attributes alone
        near = get_close_matches(name, self.__dict__, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "keys of your own go below plugin in the config"
        raise AttributeError(f"the config has no key {name!r} here; {hint}", name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"args are read-only, so {name!r} cannot be set; set it in the config")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"args are read-only, so {name!r} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Args) and self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        return f"Args({self.__dict__!r})"

    def as_dict(self) -> dict[str, Any]:
        """A plain nested dict, independent of this object."""
        return {key: value.as_dict() if isinstance(value, Args) else _plain(value) for key, value in vars(self).items()}


def defaults() -> dict[str, Any]:
    """The values of default.yaml: the top level, without blocks."""
    return yaml.safe_load((FOLDER / "default.yaml").read_text())


def freeze(config: Mapping[str, Any]) -> Args:
    """`config` as attributes. Blocks are `Args` too; `env_args` and `plugin` stay dicts.

    What `plugin` holds is also an attribute, because that is where classes written for PyMARL look for it.
    """
    values = _plain(config)
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("env_args", "plugin"):
            values[key] = Args(value)
    return Args({**values.get("plugin", {}), **values})


def extend(args: Args, **more: Any) -> Args:
    """`args` with more attributes, such as n_agents.

    Raises:
        ValueError: one of them is there already.
    """
    if clash := [name for name in more if name in vars(args)]:
        raise ValueError(f"args have {clash[0]!r} already; if it is a key below plugin, rename it")
    return Args({**vars(args), **more})


def _plain(value: Any) -> Any:
    """A copy in which mappings and sequences of any class are dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
