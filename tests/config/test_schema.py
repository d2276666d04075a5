"""The configuration: what is refused and how the message reads, what merging gives, and how `args` behave."""

import ast
import copy
import itertools
import pickle
from pathlib import Path

import pytest
import yaml
from sacred.arg_parser import get_config_updates

import config.schema
import envs
import learners
from config.schema import (
    BLOCKS,
    ENV_ARGS,
    FOLDER,
    LEARNER_BLOCKS,
    ConfigError,
    Run,
    config_files,
    extend,
    freeze,
    lineage,
    load,
    read_yaml,
)

ALGS, ENVS = config_files("algs"), config_files("envs")
DEFAULTS = read_yaml(FOLDER / "default.yaml")


def with_(*updates: str, alg="greedy_qmix", env="smax") -> dict:
    """The configuration of a command line that ends in `with UPDATES`."""
    return load(alg, env, get_config_updates(updates)[0])


def refusal(*updates: str, alg="greedy_qmix", env="smax") -> str:
    """The message that such a command line earns, which is always one line."""
    with pytest.raises(ConfigError) as caught:
        with_(*updates, alg=alg, env=env)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def own_yaml(tmp_path):
    """Writes a yaml file of the user's own and returns its path."""

    def write(text: str, name="own.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# --- the files of the project


@pytest.mark.parametrize(("alg", "env"), itertools.product(ALGS, ENVS))
def test_every_algorithm_loads_with_every_environment(alg, env):
    config = load(alg, env, {})
    assert config["name"] == alg
    assert config["env"] == read_yaml(lineage("env-config", ENVS[env])[0])["env"]
    assert config["env_args"]["seed"] == config["seed"]


def test_default_yaml_and_the_schema_have_the_same_keys():
    assert list(DEFAULTS) != []
    assert {*DEFAULTS} == {*Run.model_fields, "env_args", "plugin"}


def test_the_schema_gives_no_values():
    for model in (Run, *BLOCKS.values(), *ENV_ARGS.values()):
        assert all(field.is_required() for field in model.model_fields.values()), model


@pytest.mark.parametrize("block", BLOCKS)
def test_every_file_with_a_block_gives_all_its_keys_unless_it_extends_another(block):
    contents = {name: read_yaml(path) for name, path in ALGS.items()}
    owners = {name: content for name, content in contents.items() if block in content}
    assert owners
    for name, content in owners.items():
        missing = {*BLOCKS[block].model_fields} - {*content[block]}
        inherits = any(block in read_yaml(path) for path in lineage("config", ALGS[name])[:-1])
        assert not missing or inherits, name
        assert {*content[block]} <= {*BLOCKS[block].model_fields}, name


def test_a_file_says_nothing_that_the_file_which_it_extends_says_already():
    def repeated(mine, parents) -> list[str]:
        if not isinstance(mine, dict):
            return [""] if mine == parents else []
        known = {key: value for key, value in mine.items() if key in parents}
        return [f".{key}{rest}" for key, value in known.items() for rest in repeated(value, parents[key])]

    for kind, files in (("algs", ALGS), ("envs", ENVS)):
        for name, path in files.items():
            content = read_yaml(path)
            if "extends" in content:
                extended = content.pop("extends")
                parent = load(*((extended, "smax") if kind == "algs" else ("qmix", extended)), {})
                assert repeated(content, parent) == [], name


def test_env_args_of_the_yaml_files_and_the_schema_have_the_same_keys():
    contents = [read_yaml(path) for path in ENVS.values()]
    by_env = {content["env"]: {*content["env_args"]} for content in contents if "env" in content}
    assert by_env == {env: {*model.model_fields} for env, model in ENV_ARGS.items()}


def test_every_environment_and_learner_of_the_registries_is_known():
    assert {*ENV_ARGS} == {*envs.REGISTRY}
    assert {*LEARNER_BLOCKS} == {*learners.REGISTRY}


@pytest.mark.parametrize(
    ("env", "file", "name", "given"),
    [
        ("smax", "smax.py", "SmaxVectorEnv", {"n_envs", "device"}),
        ("matrix_games", "matrix_games.py", "MatrixGameVectorEnv", {"n_envs", "device"}),
        ("gymma", "gymma.py", "GymmaEnv", set()),
    ],
)
def test_env_args_are_the_arguments_of_the_environments(env, file, name, given):
    module = ast.parse((FOLDER.parent / "envs" / file).read_text(encoding="utf-8"))  # importing jax takes seconds
    (found,) = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name]
    (init,) = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    arguments = {argument.arg for argument in init.args.args} - {"self", *given}
    assert arguments == {*ENV_ARGS[env].model_fields}


# --- merging


def test_each_source_overrides_the_one_before(own_yaml):
    env = own_yaml(ENVS["smax"].read_text() + "gamma: 0.5\nlr: 0.5\ncritic_lr: 0.5\n", "env.yaml")
    alg = own_yaml(ALGS["qmix"].read_text() + "lr: 0.25\ncritic_lr: 0.25\n", "alg.yaml")
    config = with_("critic_lr=0.125", alg=alg, env=env)
    assert config["optim_alpha"] == DEFAULTS["optim_alpha"]
    assert (config["gamma"], config["lr"], config["critic_lr"]) == (0.5, 0.25, 0.125)


def test_blocks_are_merged_key_by_key():
    plain, changed = with_(), with_("gate.mode=hard", "env_args.map_name=8m")
    assert changed["gate"] == plain["gate"] | {"mode": "hard"}
    assert changed["env_args"] == plain["env_args"] | {"map_name": "8m"}


def test_values_stay_as_they_were_written():
    config = with_("lr=5e-4", "grad_norm_clip=1", "mixer=vdn", "target_update_interval=None", "td_lambda=1")
    assert (config["lr"], config["mixer"], config["target_update_interval"]) == (5e-4, "vdn", None)
    assert type(config["grad_norm_clip"]) is type(config["td_lambda"]) is int


def test_the_result_shares_nothing_with_the_overrides():
    overrides = {"plugin": {"list": [1], "block": {"x": 1}}}
    config = load("qmix", "smax", overrides)
    config["plugin"]["list"].append(2)
    config["plugin"]["block"]["x"] = 2
    assert overrides == {"plugin": {"list": [1], "block": {"x": 1}}}


def test_the_environments_seed_follows_the_runs_seed_unless_it_has_its_own():
    assert with_("seed=7")["env_args"]["seed"] == 7
    assert with_("seed=7", "env_args.seed=3")["env_args"]["seed"] == 3
    assert with_("seed=7", "env_args.seed=0")["env_args"]["seed"] == 0


def test_an_environment_of_the_users_own_gets_any_arguments_and_the_seed(own_yaml):
    env = own_yaml("env: my.module:Env\nenv_args:\n  anything: [1, 2]\n")
    assert with_("seed=4", env=env)["env_args"] == {"anything": [1, 2], "seed": 4}


def test_a_plugin_learner_may_have_blocks_or_not():
    learner = "learner=my.module:Learner"
    assert with_(learner)["gate"]
    assert "gate" not in with_(learner, alg="qmix")
    assert "gate.mode" in refusal(learner, "gate.mode=softly")


def test_an_unknown_learner_is_left_to_the_registry():
    assert with_("learner=greedy_q_lerner")["learner"] == "greedy_q_lerner"


# --- one key at a time


def bounds():
    """(key, the nearest values inside, the nearest outside)"""
    for key in ("gamma", "optim_alpha", "gate.ema"):
        yield key, (0, 0.999), (-0.001, 1)
    for key in ("td_lambda", "epsilon_start", "gate.weight_independent", "munchausen.alpha"):
        yield key, (0.05, 1), (-0.001, 1.001)
    for key in ("munchausen.alternative_ema", "target_update_tau"):
        yield key, (0.001, 1), (0, 1.001)
    for key in ("conservative.alpha_independent", "conservative.alpha_cooperative"):
        yield key, (0, 100), (-0.001,)
    for key in ("conservative.temperature", "gate.p", "gate.eps", "gate.eta", "gate.l_max", "munchausen.tau", "lr"):
        yield key, (1e-9, 100), (0, -1)
    for key in ("critic_lr", "optim_eps", "grad_norm_clip", "updates_per_episode", "env_args.reward_scale"):
        yield key, (1e-9, 100), (0, -1)
    for key in ("t_max", "test_nepisode", "test_interval", "log_interval", "runner_log_interval", "rnn_hidden_dim"):
        yield key, (1, 10**9), (0, 1.5, True)
    for key in ("learner_log_interval", "save_model_interval", "epsilon_anneal_time", "mixing_embed_dim"):
        yield key, (1, 10**9), (0, 1.5, True)
    for key in ("batch_size_run", "batch_size", "hypernet_embed", "env_args.time_limit", "target_update_interval"):
        yield key, (1, 32), (0, -1, 1.5, True)
    for key in ("conservative.threshold", "munchausen.kl", "behaviour.kl_weight", "gate.threshold"):
        yield key, (0, 100), (-0.001,)
    for key in ("conservative.eta", "conservative.l_max", "conservative.coefficient_max", "behaviour.lr"):
        yield key, (1e-9, 100), (0, -1)
    for key in ("conservative.samples", "gate.min_rows", "gate.rollout_interval", "gate.rollout_episodes"):
        yield key, (1, 10**9), (0, 1.5, True)
    for key in ("behaviour.hidden_dim", "behaviour.latent_dim", "behaviour.samples"):
        yield key, (1, 32), (0, -1, 1.5, True)
    yield "gate.prior_cooperative", (0.001, 0.999), (0, 1)
    yield "gate.importance_clip", (1, 1e9), (0.999,)
    yield "test_epsilon", (0, 1), (-0.001, 1.001)
    yield "seed", (0, 2_000_000_000), (-1, 2_000_000_001)
    yield "env_args.seed", (0, None, 2_000_000_000), (-1, 2_000_000_001)
    yield "load_step", (0,), (-1,)
    yield "torch_threads", (0, 8), (-1,)
    yield "gate.floor", (0, 0.499), (-0.001, 0.5)
    yield "munchausen.l0", (0, -100), (0.001,)
    yield "hypernet_layers", (1, 2), (0, 3, True)


CLEAR = {
    "target_update_tau": ["target_update_interval=None"],
    "target_update_interval": ["target_update_tau=None"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, inside, _ in bounds() for value in inside])
def test_values_at_the_edge_of_their_range_are_taken(key, value):
    config = with_(f"{key}={value}", *CLEAR.get(key, []))
    for part in key.split("."):
        config = config[part]
    assert config == (0 if key == "env_args.seed" and value is None else value)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, _, outside in bounds() for value in outside])
def test_values_outside_their_range_are_refused(key, value):
    assert refusal(f"{key}={value}", *CLEAR.get(key, [])).startswith(f"{key}={value} (command line): expected a")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-1e999"])
def test_numbers_are_finite(value):
    assert "expected a number" in refusal(f"env_args.reward_win={value}", env="sc2")


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ("gamma=2", "gamma=2 (command line): expected a number in [0, 1)"),
        ("seed=-1", "seed=-1 (command line): expected an integer in [0, 2000000000]"),
        ("t_max=0", "t_max=0 (command line): expected an integer >= 1"),
        ("munchausen.l0=1", "munchausen.l0=1 (command line): expected a number <= 0"),
        ("lr=fast", "lr='fast' (command line): expected a number > 0"),
        ("lr=True", "lr=True (command line): expected a number > 0"),
        ("lr.x=1", "lr={'x': 1} (command line): expected a number > 0"),
        ("double_q=1", "double_q=1 (command line): expected True or False"),
        ("optimizer=sgd", "optimizer='sgd' (command line): expected one of rmsprop, adam"),
        ("gate.mode=soft", "gate.mode='soft' (command line): expected one of direct, hard, lagrange, fixed, none"),
        ("gate.acts_on=act", "gate.acts_on='act' (command line): expected one of loss, penalty, none"),
        ("gate.threshold=-1", "gate.threshold=-1 (command line): expected a number >= 0, or None"),
        ("gate.importance_clip=0.5", "gate.importance_clip=0.5 (command line): expected a number >= 1"),
        ("heads.act=both", "heads.act='both' (command line): expected one of shared, independent, cooperative, global"),
        ("behaviour.source=bc", "behaviour.source='bc' (command line): expected one of empirical, stored, bc_rnn"),
        ("gate.joint=min", "gate.joint='min' (command line): expected one of auto, max, cf"),
        ("conservative.op=mean", "conservative.op='mean' (command line): expected one of lse, max, lse_beta"),
        (
            "munchausen.source=alt",
            "munchausen.source='alt' (command line): expected one of alt_counterfactual, alt_utility",
        ),
        ("munchausen.bootstrap=x", "munchausen.bootstrap='x' (command line): expected one of soft, hard"),
        ("env_args.attack_mode=x", "env_args.attack_mode='x' (command line): expected one of closest, random"),
        ("agent_output_type=v", "agent_output_type='v' (command line): expected one of q, pi_logits"),
        ("mac=a.b", "mac='a.b' (command line): expected a name or package.module:ClassName"),
        ("mac=a b", "mac='a b' (command line): expected a name or package.module:ClassName"),
        ("mac=a:", "mac='a:' (command line): expected a name or package.module:ClassName"),
        ("runner=None", "runner=None (command line): expected a name or package.module:ClassName"),
        ("name=a/b", "name='a/b' (command line): expected text of letters, digits and . _ -"),
        ("env_args.map_name=", "env_args.map_name='' (command line): expected non-empty text"),
        ("share=some", "share='some' (command line): expected one of all, none, groups"),
        ("share=None", "share=None (command line): expected one of all, none, groups; write none"),
        (
            "share_groups=2",
            "share_groups=2 (command line): expected a list of group numbers, one for each agent, or None",
        ),
        ("share_groups=[0,-1]", "share_groups=[0, -1] (command line): expected a list of group numbers"),
        ("share_groups=[]", "share_groups=[] (command line): expected a list of group numbers"),
        ("gate=hard", "gate='hard' (command line): gate is a block of keys, set one by one as gate.KEY=VALUE"),
        ("env_args=None", "env_args=None (command line): env_args is a block of keys, set one by one as"),
        ("plugin=1", "plugin=1 (command line): plugin is a block of keys, set one by one as plugin.KEY=VALUE"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(update, expected):
    assert refusal(update).startswith(expected)


def test_a_key_is_text_without_dots(own_yaml):
    with pytest.raises(ConfigError, match=r"^plugin.1 \(command line\): a key is printable text without dots"):
        load("qmix", "smax", {"plugin": {1: 2}})
    path = own_yaml("gate.mode: hard\n")
    assert refusal(alg=path) == f"'gate.mode' ({path}): a key is printable text without dots; in yaml, indent a block"


def test_an_unknown_key_is_reported_even_if_the_environment_is_no_name():
    assert refusal("env=[1]", "gama=1").startswith("gama=1 (command line): unknown key; did you mean gamma?")


@pytest.mark.parametrize(
    ("update", "remedy"),
    [
        ("t_max=1e6", "t_max=1000000.0 (command line): expected an integer >= 1; write 1000000"),
        ("t_max='1e6'", "; write 1000000"),
        ("t_max=1.5", "expected an integer >= 1"),
        ("lr='5e-4'", "; write 5.0e-4"),
        ("lr='1E5'", "; write 1.0e+5"),
        ("lr='.5'", "; write 0.5"),
        ("mixer=null", "or None; write None"),
        ("mixer='None'", "or None; write None"),
        ("target_update_tau=null", "or None; write None"),
        ("double_q=true", "; write True"),
        ("double_q=false", "; write False"),
        ("gate.mode=None", "; write none"),
        ("label=7", """; write label='"7"'"""),
        ("gate.mode=3", "fixed, none"),
    ],
)
def test_a_notation_that_was_misread_is_shown_right(update, remedy):
    assert refusal(update).endswith(remedy)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("lr: 5e-4", "lr='5e-4' ({path}): expected a number > 0; write 5.0e-4"),
        ("t_max: 1e6", "t_max='1e6' ({path}): expected an integer >= 1; write 1000000"),
        ("t_max: 1.0e+6", "t_max=1000000.0 ({path}): expected an integer >= 1; write 1000000"),
        ("mixer: None", "mixer='None' ({path}): expected a name or package.module:ClassName, or null; write null"),
        ("label: 7", 'label=7 ({path}): expected text; write "7"'),
    ],
)
def test_in_yaml_a_misread_notation_is_shown_right_too(own_yaml, line, remedy):
    path = own_yaml(line)
    assert refusal(alg=path) == remedy.format(path=path)


def test_what_yaml_shows_as_right_is_read_as_right(own_yaml):
    config = load(own_yaml("lr: 5.0e-4\ncritic_lr: 1.0e+5\nt_max: 1000000"), "smax", {})
    assert (config["lr"], config["critic_lr"], config["t_max"]) == (5e-4, 1e5, 10**6)


@pytest.mark.parametrize("difficulty", [7, "7", "A"])
def test_a_level_of_starcraft_may_be_a_number(difficulty):
    config = load("qmix", "sc2", {"env_args": {"difficulty": difficulty}})
    assert config["env_args"]["difficulty"] == difficulty


@pytest.mark.parametrize("difficulty", [0, 10, 7.0, True, "B", "77", None])
def test_other_levels_are_refused(difficulty):
    with pytest.raises(ConfigError, match=r'expected text "1" to "9" or "A", or an integer in \[1, 9\]'):
        load("qmix", "sc2", {"env_args": {"difficulty": difficulty}})


def test_a_version_that_was_read_as_a_number_needs_quotes():
    assert refusal("env_args.game_version=4.10", env="sc2").endswith("""; write env_args.game_version='"4.1"'""")


# --- unknown and missing keys


@pytest.mark.parametrize(
    ("update", "nearest"),
    [
        ("gama=0.9", "gamma"),
        ("hidden_dim=64", "behaviour.hidden_dim"),
        ("rnn_hidden=64", "rnn_hidden_dim"),
        ("target_update_interval_or_tau=200", "target_update_interval"),
        ("gate.mod=hard", "gate.mode"),
        ("gat.mode=hard", "gate"),
        ("mode=hard", "gate.mode"),
        ("conservative.source=none", "munchausen.source"),
        ("plugins.x=1", "plugin"),
        ("map_name=8m", "env_args.map_name"),
    ],
)
def test_an_unknown_key_gets_the_nearest_one(update, nearest):
    message = refusal(update)
    assert message.startswith(update.split("=")[0].removesuffix(".mode" if "gat." in update else ".x") + "=")
    assert message.endswith(f" (command line): unknown key; did you mean {nearest}?")


def test_an_unknown_argument_of_an_environment_gets_the_nearest_one():
    assert refusal("env_args.map_nam=8m") == (
        "env_args.map_nam='8m' (command line): env smax has no such key; did you mean env_args.map_name?"
    )
    assert refusal("env_args.sead=1").endswith("did you mean env_args.seed?")
    assert refusal("env_args.map_name=8m", env="matrix_games").endswith(
        "env matrix_games has no such key; env_args has game, k, repeats, seed"
    )


def test_an_unknown_key_that_resembles_none_is_sent_to_plugin():
    message = refusal("foo=1")
    assert message.startswith("foo=1 (command line): unknown key;")
    assert "docs/configuration.md" in message
    assert message.endswith("below plugin, as plugin.foo")
    assert refusal("munchausen.zzz=1").endswith("munchausen has " + ", ".join(BLOCKS["munchausen"].model_fields))


def test_a_misspelt_key_is_named_rather_than_what_it_leaves_missing(own_yaml):
    path = own_yaml(ENVS["smax"].read_text().replace("map_name", "map_nam"))
    assert refusal(env=path).startswith(f"env_args.map_nam='3m' ({path}): env smax has no such key; did you mean")


def test_a_missing_key_is_named_with_what_it_may_be(own_yaml):
    path = own_yaml("env: smax\nenv_args:\n  map_name: 3m\n")
    assert refusal(env=path).startswith("env_args.seed is missing: env smax needs it, an integer in [0, 2000000000]")
    path = own_yaml("learner: greedy_q_learner\nheads:\n  utilities: shared\n")
    assert refusal(alg=path).startswith(
        "heads.act is missing: learner greedy_q_learner needs it, one of shared, independent, cooperative, global"
    )


def test_a_block_that_the_learner_does_not_use_is_refused(own_yaml):
    owners = ", ".join(name for name in ALGS if "gate" in load(name, "smax", {}))
    assert refusal("gate.mode=hard", alg="qmix") == (
        f"gate.mode='hard' (command line): config qmix (learner q_learner) has no block gate; available with {owners}"
    )
    path = own_yaml("gate:\n  mode: hard\n", "mine.yaml")
    assert refusal(alg=path).startswith(f"gate.mode='hard' ({path}): config mine (learner q_learner) has no block gate")


def test_a_learner_without_its_blocks_is_refused():
    message = refusal("learner=greedy_q_learner", alg="qmix")
    assert message.startswith("learner='greedy_q_learner' (command line): needs the block heads; start from ")
    for owner in ("greedy_qmix", "greedy_qmix_cert", "greedy_vdn"):  # what a file extends counts too
        assert f"--config={owner}" in message


# --- keys of the user's own


def test_keys_below_plugin_are_free():
    assert with_("plugin.a=1", "plugin.b.c=x")["plugin"] == {"a": 1, "b": {"c": "x"}}


@pytest.mark.parametrize("key", ["lr", "gate", "env_args", "plugin"])
def test_a_plugin_key_that_the_project_has_is_refused(key):
    assert refusal(f"plugin.{key}=1", alg="qmix") == (
        f"plugin.{key}=1 (command line): {key} is a key of the project; set {key} itself, or rename yours"
    )


@pytest.mark.parametrize("key", ["as_dict", "_private", "a b", "1a"])
def test_a_plugin_key_that_args_cannot_have_is_refused(key):
    assert refusal(f"plugin.{key}=1").endswith("not a name that args can have; rename it")


# --- keys that do not go together


@pytest.mark.parametrize(
    ("updates", "found", "remedy"),
    [
        (
            ["runner=episode"],
            "runner='episode' (command line) and batch_size_run=64 (src/config/envs/smax.yaml): ",
            "also set batch_size_run=1, or runner=vector or parallel",
        ),
        (
            ["buffer_size=31"],
            "buffer_size=31 (command line) and batch_size=32 (src/config/default.yaml): ",
            "raise buffer_size or lower batch_size",
        ),
        (
            ["target_update_interval=200"],
            "target_update_interval=200 (command line) and target_update_tau=0.03 (src/config/algs/greedy_qmix.yaml): ",
            "set one of them to null (on the command line: None)",
        ),
        (
            ["action_selector=multinomial"],
            "action_selector='multinomial' (command line) and agent_output_type='q' (src/config/default.yaml): ",
            "set agent_output_type=pi_logits",
        ),
        (
            ["epsilon_start=0.04"],
            "epsilon_start=0.04 (command line) and epsilon_finish=0.05 (src/config/default.yaml): ",
            "lower epsilon_finish",
        ),
        (
            ["mixer=None"],
            "learner='greedy_q_learner' (src/config/algs/greedy_qmix.yaml) and mixer=None (command line): ",
            "set mixer=qmix",
        ),
        (
            ["evaluate=True"],
            "evaluate=True (command line) and checkpoint_path='' (src/config/default.yaml): ",
            "Set checkpoint_path=results/models/<token>",
        ),
        (
            ["gate.mode=lagrange", "gate.joint=max"],
            "gate.mode='lagrange' (command line) and gate.joint='max' (command line): ",
            "set gate.joint=auto or gate.joint=cf",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_named_with_the_remedy(updates, found, remedy):
    message = refusal(*updates)
    assert message.startswith(found)
    assert message.endswith(remedy)


@pytest.mark.parametrize(
    ("alg", "updates", "found", "remedy"),
    [
        (
            "ow_qmix",
            ["mixer=None"],
            "learner='weighted_q_learner' (src/config/algs/ow_qmix.yaml) and mixer=None (command line): ",
            "set mixer=qmix",
        ),
        (
            "qtran",
            ["mixer=qmix"],
            "learner='qtran_learner' (src/config/algs/qtran.yaml) and mixer='qmix' (command line): ",
            "set mixer=qtran_base (or qtran_alt)",
        ),
        (
            "qmix",
            ["mixer=qtran_alt"],
            "mixer='qtran_alt' (command line) and learner='q_learner' (src/config/algs/qmix.yaml): ",
            "set learner=qtran_learner, or mixer=qmix",
        ),
        (
            "greedy_qmix",
            ["mixer=dmaq"],
            "mixer='dmaq' (command line) and learner='greedy_q_learner' (src/config/algs/greedy_qmix.yaml): ",
            "set learner=q_learner, or mixer=qmix",
        ),
    ],
)
def test_learners_and_mixers_that_contradict_each_other_are_refused(alg, updates, found, remedy):
    message = refusal(*updates, alg=alg)
    assert message.startswith(found)
    assert message.endswith(remedy)


@pytest.mark.parametrize(
    "updates", [["mixer=dmaq"], ["mixer=qtran_alt", "learner=my.plugin:Learner"], ["mixer=my.plugin:Mixer"]]
)
def test_mixers_that_fit_are_taken(updates):
    assert with_(*updates, alg="ow_qmix" if len(updates) == 1 else "qmix")["mixer"] == updates[0].partition("=")[2]


def test_a_joint_network_of_the_users_own_is_taken():
    assert with_("mixer=my.plugin:Joint", alg="qtran")["mixer"] == "my.plugin:Joint"


def test_blocks_of_other_learners_are_refused():
    message = refusal("weighting.alpha=0.1", alg="qmix")
    assert "config qmix (learner q_learner) has no block weighting" in message
    assert message.endswith("available with cw_qmix, ow_qmix")
    assert refusal("weighting.alpha=0.0", alg="ow_qmix").endswith("expected a number in (0, 1]")
    assert refusal("weighting.rul=central", alg="ow_qmix").endswith("did you mean weighting.rule?")


@pytest.mark.parametrize(
    "updates",
    [
        ["runner=episode", "batch_size_run=1"],
        ["buffer_size=32"],
        ["target_update_tau=0.01", "target_update_interval=None"],
        ["target_update_interval=None"],
        ["epsilon_start=0.05"],
        ["mixer=vdn"],
        ["evaluate=True", "checkpoint_path=results/models/x"],
        ["gate.mode=lagrange"],
        ["gate.mode=lagrange", "gate.joint=cf"],
        ["gate.mode=hard", "gate.joint=max"],
    ],
)
def test_what_the_remedies_say_is_taken(updates):
    with_(*updates)


SEPARATE = ["heads.utilities=separate", "heads.act=global", "mac=gated_mac", "gate.acts_on=none"]
HELD = ["conservative.coefficient=lagrange", "conservative.op=max", "conservative.threshold=0.5"]
OTHERS = ["munchausen.who=others", "munchausen.source=alt_utility"]


@pytest.mark.parametrize(
    ("updates", "found", "why"),
    [
        (
            ["heads.act=global"],
            "heads.utilities='shared', heads.act='global'",
            "separate ones two; set heads.act=shared",
        ),
        (
            [*SEPARATE, "heads.act=shared"],
            "heads.utilities='separate', heads.act='shared'",
            "two; set heads.act=global (or independent, cooperative, agent, distil)",
        ),
        ([*SEPARATE, "mac=basic_mac"], "heads.utilities='separate', mac='basic_mac'", "set mac=gated_mac"),
        (["mac=gated_mac"], "heads.utilities='shared', mac='gated_mac'", "set mac=basic_mac"),
        *(
            (
                [*SEPARATE, "gate.mode=none", f"heads.act={act}"],
                f"gate.mode='none', heads.act='{act}'",
                "nothing chooses who acts; set heads.act=cooperative, or a gate.mode",
            )
            for act in ("global", "agent", "distil")
        ),
        (
            [*SEPARATE, "gate.acts_on=loss"],
            "heads.utilities='separate', gate.acts_on='loss'",
            "does not change what separate networks learn; set gate.acts_on=none or penalty",
        ),
        *(
            (
                ["heads.reward_independent=individual", f"gate.target={target}"],
                f"heads.reward_independent='individual', gate.target='{target}'",
                "on different scales; set gate.target=own",
            )
            for target in ("min", "soft", "cert")
        ),
        *(
            (
                ["gate.mode=lagrange", f"gate.joint={joint}"],
                f"gate.mode='lagrange', gate.joint='{joint}'",
                "would trust the wrong head; set gate.joint=auto or gate.joint=cf",
            )
            for joint in ("max", "sampled")
        ),
        *(
            (
                [*SEPARATE, "gate.mode=fixed", f"heads.act={act}"],
                f"gate.mode='fixed', heads.act='{act}'",
                "the same in every state; set heads.act=independent or cooperative",
            )
            for act in ("agent", "distil")
        ),
        *(
            (
                [*SEPARATE, "gate.metric=cert", "gate.realised=rollout", f"heads.act={act}"],
                f"gate.realised='rollout', heads.act='{act}'",
                "played by one head for all agents; set heads.act=global, or gate.realised=is",
            )
            for act in ("independent", "cooperative", "agent", "distil")
        ),
        (
            ["conservative.joint=max"],
            "conservative.joint='max', conservative.op='lse'",
            "set conservative.op=max or conservative.joint=cf",
        ),
        (["gate.op=lse"], "gate.joint='auto', gate.op='lse'", "set gate.op=max or gate.joint=cf"),
        (
            ["conservative.joint=sampled", "conservative.op=max"],
            "conservative.joint='sampled', conservative.op='max'",
            "samples estimate a log-sum-exp; set conservative.op=lse or conservative.joint=cf",
        ),
        (["gate.joint=sampled"], "gate.joint='sampled', gate.op='max'", "set gate.op=lse or gate.joint=cf"),
        (
            ["conservative.op=lse_beta"],
            "conservative.op='lse_beta', behaviour.source='empirical'",
            "have no probabilities; set behaviour.source=stored (or bc_rnn, cvae_joint)",
        ),
        (
            ["gate.op=lse_beta", "gate.joint=cf"],
            "gate.op='lse_beta', behaviour.source='empirical'",
            "have no probabilities; set behaviour.source=stored (or bc_rnn, cvae_joint)",
        ),
        *(
            (
                ["conservative.coefficient=lagrange", f"conservative.op={op}"],
                f"conservative.coefficient='lagrange', conservative.op='{op}'",
                "the multiplier would diverge; use max or lse_beta",
            )
            for op in ("lse", "lse_mean", "softmax", "uniform")
        ),
        (
            [*HELD, "gate.mode=lagrange", "gate.acts_on=penalty"],
            "conservative.coefficient='lagrange', gate.acts_on='penalty'",
            "cancel against multiplied penalties; set gate.acts_on=loss",
        ),
        (
            [*SEPARATE, *HELD, "gate.mode=lagrange", "gate.acts_on=penalty"],
            "conservative.coefficient='lagrange', gate.acts_on='penalty'",
            "cancel against multiplied penalties; set gate.acts_on=none",
        ),
        (
            ["conservative.coefficient=lagrange", "conservative.op=max"],
            "conservative.coefficient='lagrange', conservative.threshold=0.0",
            "no gap is below 0, so the multiplier would only grow; set conservative.threshold above 0",
        ),
        *(
            (
                [setting, "gate.realised=is"],
                "gate.realised='is', behaviour.source='empirical'",
                "need the probabilities of the actions; set behaviour.source=stored",
            )
            for setting in ("gate.metric=over", "gate.metric=cert", "gate.metric=realised", "gate.target=cert")
        ),
        *(
            (
                [setting, "gate.realised=rollout", "runner=episode", "batch_size_run=1"],
                "gate.realised='rollout', runner='episode'",
                "set runner=vector",
            )
            for setting in ("gate.metric=over", "gate.metric=cert", "gate.metric=realised", "gate.target=cert")
        ),
        *(
            (
                ["munchausen.source=alt_utility", f"munchausen.who={who}"],
                "munchausen.source='alt_utility', heads.utilities='shared'",
                "the head's own policy; set munchausen.source=alt_counterfactual (or self)",
            )
            for who in ("own", "sum", "author")
        ),
        (
            ["munchausen.who=others"],
            "munchausen.who='others', munchausen.source='alt_counterfactual'",
            "belongs to its agent's own action; set munchausen.source=alt_utility",
        ),
        (
            [*OTHERS, "obs_agent_id=False"],
            "munchausen.who='others', obs_agent_id=False",
            "without ids all agents have one policy, so others say what the agent itself says; set munchausen.who=own",
        ),
        (
            ["share=none", "behaviour.source=bc_rnn", "obs_agent_id=False"],
            "behaviour.source='bc_rnn', share='none', obs_agent_id=False",
            "one model of the behaviour stands for agents that differ; set obs_agent_id=True",
        ),
        (
            ["heads.shared_experience=0.5", "obs_agent_id=False"],
            "heads.shared_experience=0.5, share='all', obs_agent_id=False",
            "without ids agents that share parameters are one; set share=none, or obs_agent_id=True",
        ),
        (
            ["share=none", "share_groups=[0]"],
            "share='none', share_groups=[0]",
            "there are no groups to give; set share=groups, or leave share_groups out",
        ),
        (
            [*OTHERS, "munchausen.kl=0.5"],
            "munchausen.who='others', munchausen.kl=0.5",
            "the direct KL is to one policy; set munchausen.who=own or munchausen.kl=0",
        ),
    ],
)
def test_options_of_the_method_that_make_no_sense_together_are_refused_with_the_reason(updates, found, why):
    message = refusal(*updates)
    keys, _, remedy = message.partition(": ")
    assert [part.partition(" (")[0] for part in keys.split(" and ")] == found.split(", ")
    assert remedy.endswith(why)


@pytest.mark.parametrize(
    "updates",
    [
        SEPARATE,
        *([*SEPARATE, f"heads.act={act}"] for act in ("independent", "cooperative", "agent", "distil")),
        [*SEPARATE, "heads.act=cooperative", "gate.mode=none"],
        [*SEPARATE, "gate.mode=none", "heads.act=independent", "gate.acts_on=loss"],  # without a gate it has no meaning
        [*SEPARATE, "gate.acts_on=penalty"],
        [*SEPARATE, "munchausen.source=alt_utility"],
        ["heads.reward_independent=individual"],
        ["conservative.joint=max", "conservative.op=max"],
        ["conservative.joint=sampled"],
        ["gate.joint=sampled", "gate.op=lse"],
        ["gate.op=lse", "gate.joint=cf"],
        ["gate.op=lse", "gate.mode=lagrange"],  # auto is cf then
        *(["conservative.op=lse_beta", f"behaviour.source={source}"] for source in ("stored", "bc_rnn", "cvae_joint")),
        [*HELD, "gate.mode=lagrange"],
        [*HELD, "gate.acts_on=penalty"],
        [*SEPARATE, *HELD, "gate.mode=lagrange", "gate.acts_on=none"],
        ["gate.metric=over", "gate.realised=is", "behaviour.source=stored"],
        ["gate.metric=cert", "gate.realised=rollout"],
        [*SEPARATE, "gate.metric=cert", "gate.realised=rollout"],
        [*SEPARATE, "gate.mode=fixed"],
        ["gate.realised=is"],  # nothing is measured
        OTHERS,
        ["munchausen.who=others", "munchausen.source=self"],
        ["munchausen.who=others", "munchausen.source=none"],
    ],
)
def test_options_of_the_method_that_do_make_sense_are_taken(updates):
    with_(*updates)


@pytest.mark.parametrize(
    ("alg", "update", "found", "remedy"),
    [
        ("iql", "agent_output_type=pi_logits", "agent_output_type='pi_logits'", "set agent_output_type=q"),
        (
            "qmix",
            "mac=gated_mac",
            "mac='gated_mac'",
            "there is one head, which needs no second network; set mac=basic_mac",
        ),
        (
            "brac_p",
            "regulariser.coefficient=lagrange",
            "regulariser.coefficient='lagrange'",
            "so the multiplier would only grow; set regulariser.threshold above 0",
        ),
        ("lica", "critic=None", "critic=None", "its actors learn from another critic; set critic=lica"),
        ("lica", "agent_output_type=q", "action_selector='multinomial'", "set agent_output_type=pi_logits"),
        (
            "lica",
            "action_selector=epsilon_greedy",
            "action_selector='epsilon_greedy'",
            "set action_selector=multinomial",
        ),
        ("lica", "mixer=qmix", "mixer='qmix'", "actors have no values to mix; set mixer=null"),
        ("lica", "mac=gated_mac", "mac='gated_mac'", "give values, no policies; set mac=basic_mac"),
        ("iac", "critic=lica", "critic='lica'", "learn from another critic; set critic=value or central_value"),
        ("seac", "critic=central_value", "critic='central_value'", "only what it sees is known; set critic=value"),
        ("seac", "share=all", "share='all'", "are one; set share=none, or obs_agent_id=True"),
        ("greedy_lica", "gate.metric=cert", "gate.metric='cert'", "not tell them apart; set gate.metric=gap or td"),
        ("greedy_lica", "gate.target=min", "gate.target='min'", "each on its own value; set gate.target=own"),
        ("greedy_lica", "gate.acts_on=loss", "gate.acts_on='loss'", "weighed anyway; set gate.acts_on=none or penalty"),
        (
            "greedy_lica",
            "conservative.joint=max",
            "conservative.joint='max'",
            "no monotone mixer of the agents' values; set conservative.joint=policy or conservative.joint=cf",
        ),
        ("greedy_lica", "gate.joint=linear", "gate.joint='linear'", "set gate.joint=policy or gate.joint=cf"),
        (
            "greedy_lica",
            "conservative.op=max",
            "conservative.op='max'",
            "only the policies' value is known; set conservative.op=policy or conservative.joint=cf",
        ),
        ("greedy_lica", "gate.op=lse", "gate.op='lse'", "set gate.op=policy or gate.joint=cf"),
        ("greedy_lica", "munchausen.source=alt_utility", "munchausen.source='alt_utility'", "(or self)"),
        ("greedy_lica", "munchausen.who=others", "munchausen.who='others'", "set munchausen.who=own"),
        ("greedy_lica", "heads.act=global", "heads.act='global'", "greedy_vdn, m_iql, m_qmix"),
        ("greedy_lica", "mixer=qmix", "mixer='qmix'", "actors have no values to mix; set mixer=null"),
        ("greedy_qmix", "gate.op=policy", "gate.op='policy'", "no policies apart from their values; set gate.op=max"),
        ("greedy_qmix", "conservative.joint=policy", "conservative.joint='policy'", "set conservative.joint=max"),
        ("qmix", "critic=lica", "critic='lica'", "Q learners have no critic; set critic=null, or learner=lica_learner"),
        ("qmix", "entropy_coef=0.1", "entropy_coef=0.1", "no policy whose entropy could be raised; set entropy_coef=0"),
        ("maddpg", "critic=None", "critic=None", "its actors learn from another critic; set critic=maddpg or lica"),
        ("greedy_maddpg", "gate.target=min", "gate.target='min'", "each on its own value; set gate.target=own"),
        ("greedy_maddpg", "conservative.joint=max", "conservative.joint='max'", "or conservative.joint=cf"),
        ("brac_p", "action_selector=epsilon_greedy", "action_selector='epsilon_greedy'", "action_selector=multinomial"),
        ("brac_p", "behaviour.source=stored", "behaviour.source='stored'", "set behaviour.source=bc_rnn"),
        ("brac_v", "gate.mode=hard", "gate.mode='hard'", "greedy_vdn, m_iql, m_qmix"),
        ("lica", "logit_coef=0.1", "logit_coef=0.1", "logits small; set logit_coef=0, or learner=maddpg_learner"),
        ("qmix", "logit_coef=0.1", "logit_coef=0.1", "logits small; set logit_coef=0, or learner=maddpg_learner"),
    ],
)
def test_what_actor_critics_and_q_learners_cannot_have_is_refused_with_the_reason(alg, update, found, remedy):
    message = refusal(update, alg=alg)
    assert found in message.partition(": ")[0]
    assert message.endswith(remedy)


@pytest.mark.parametrize(
    ("updates", "found", "remedy"),
    [
        (
            ["gate.mode=lagrange", "gate.joint=policy"],
            "gate.mode='lagrange', gate.joint='policy'",
            "trust the wrong head; set gate.joint=auto or gate.joint=cf",
        ),
        (
            ["munchausen.source=none", "munchausen.kl=0.5"],
            "munchausen.source='none', munchausen.kl=0.5",
            "munchausen.kl=0",
        ),
        (
            ["gate.op=lse_beta", "gate.joint=cf"],
            "gate.op='lse_beta', behaviour.source='empirical'",
            "set behaviour.source=stored (or bc_rnn, cvae_joint)",
        ),
        (
            ["conservative.coefficient=lagrange", "gate.mode=lagrange", "gate.acts_on=penalty"],
            "conservative.coefficient='lagrange', gate.acts_on='penalty'",
            "cancel against multiplied penalties; set gate.acts_on=none",
        ),
    ],
)
def test_terms_that_contradict_each_other_are_refused_whatever_the_heads_are(updates, found, remedy):
    message = refusal(*updates, alg="greedy_lica")
    keys = message.partition(": ")[0]
    assert [part.partition(" (")[0] for part in keys.split(" and ")] == found.split(", ")
    assert message.endswith(remedy)


@pytest.mark.parametrize(
    ("alg", "updates"),
    [
        ("lica", ["action_selector=one_at_a_time"]),  # data of another policy
        ("greedy_lica", ["conservative.joint=cf", "conservative.op=max"]),
        ("greedy_lica", ["gate.mode=lagrange"]),  # auto is cf then
        ("greedy_lica", ["gate.mode=lagrange", "gate.op=lse"]),
        ("greedy_lica", ["gate.mode=none", "gate.acts_on=loss"]),  # without a gate it has no meaning
        ("greedy_lica", ["conservative.coefficient=lagrange"]),
        ("greedy_lica", ["munchausen.source=self", "munchausen.kl=0.5"]),
        ("greedy_maddpg", ["gate.mode=lagrange", "gate.joint=auto"]),
        ("greedy_maddpg", ["conservative.joint=policy", "gate.joint=policy"]),
        ("maddpg", ["critic=lica", "entropy_coef=0.01"]),  # a critic of probabilities can be asked at actions
        ("bear", ["regulariser.divergence=mmd", "regulariser.in_values=True"]),
        ("greedy_lica", ["munchausen.source=none", "munchausen.who=others"]),
    ],
)
def test_options_of_actor_critics_that_do_make_sense_are_taken(alg, updates):
    with_(*updates, alg=alg)


# --- files that extend others


def test_a_file_has_what_it_extends_and_says_what_differs(own_yaml):
    path = own_yaml("extends: greedy_qmix\nname: mine\nlr: 0.5\ngate:\n  mode: hard\n")
    mine, parent = with_(alg=path), with_()
    assert mine == {**parent, "name": "mine", "lr": 0.5, "gate": {**parent["gate"], "mode": "hard"}}
    assert "extends" not in mine


def test_a_file_may_extend_one_that_extends_another(own_yaml):
    middle = own_yaml("extends: qmix\nname: middle\nlr: 0.5\ngamma: 0.5\n", "middle.yaml")
    path = own_yaml(f"extends: {middle}\nlr: 0.25\n")
    config = with_(alg=path)
    assert (config["mixer"], config["gamma"], config["lr"], config["name"]) == ("qmix", 0.5, 0.25, "middle")


def test_the_command_line_wins_over_files_and_those_over_what_they_extend(own_yaml):
    path = own_yaml("extends: greedy_qmix\ngate:\n  mode: hard\n  floor: 0.125\n")
    config = with_("gate.floor=0.25", alg=path)
    assert (config["gate"]["mode"], config["gate"]["floor"]) == ("hard", 0.25)


def test_messages_name_the_file_that_a_value_came_from(own_yaml):
    path = own_yaml("extends: greedy_qmix\ngate:\n  joint: max\n")
    assert refusal("gate.mode=lagrange", alg=path).startswith(
        f"gate.mode='lagrange' (command line) and gate.joint='max' ({path}): "
    )
    path = own_yaml("extends: greedy_qmix\ntarget_update_interval: 200\n")
    assert f"interval=200 ({path}) and target_update_tau=0.03 (src/config/algs/greedy_qmix.yaml)" in refusal(alg=path)


def test_files_that_extend_each_other_are_refused(own_yaml, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    own_yaml(f"extends: {second}\n", "first.yaml")
    own_yaml(f"extends: {first}\n", "second.yaml")
    assert refusal(alg=str(first)) == f"extends='{first}' ({second}): the files extend each other in a circle"
    path = str(tmp_path / "own.yaml")
    own_yaml(f"extends: {path}\n")
    assert refusal(alg=path) == f"extends='{path}' ({path}): the files extend each other in a circle"


def test_an_unknown_file_to_extend_gets_the_nearest_one(own_yaml):
    assert "there is no such config (did you mean greedy_qmix?); available: " in refusal(
        alg=own_yaml("extends: greedy_qmx\n")
    )
    assert "did you mean --env-config=smax?" in refusal(alg=own_yaml("extends: smax\n"))
    assert "there is no such config" in refusal(alg=own_yaml("extends: missing.yaml\n"))


def test_an_unknown_file_to_extend_is_named_with_the_file_that_asks_for_it(own_yaml):
    path = own_yaml("extends: greedy_qmx\n")
    assert refusal(alg=path).startswith(f"extends='greedy_qmx' ({path}): ")


@pytest.mark.parametrize("value", ["3", "[qmix]", "{qmix: 1}", "True"])
def test_what_is_extended_is_text(own_yaml, value):
    path = own_yaml(f"extends: {value}\n")
    assert "extends" in refusal(alg=path)


def test_only_files_extend_others(own_yaml):
    assert refusal("extends=qmix").startswith("extends='qmix' (command line): unknown key")


def test_files_of_environments_extend_others(own_yaml):
    path = own_yaml("extends: smax\nenv_args:\n  map_name: 2s3z\n", "env.yaml")
    mine, parent = with_(env=path), with_(env="smax")
    assert mine == {**parent, "env_args": {**parent["env_args"], "map_name": "2s3z"}}
    assert "did you mean --config=qmix?" in refusal(env=own_yaml("extends: qmix\n"))


def test_a_file_of_the_project_extends_one_of_the_project():
    """So that the page of all keys can say where the rest is."""
    for path in ALGS.values():
        assert read_yaml(path).get("extends", "qmix") in ALGS
    for path in ENVS.values():
        assert read_yaml(path).get("extends", "smax") in ENVS


# --- files


def test_a_flag_that_is_missing_lists_what_exists():
    for flag, files, given in (("config", ALGS, {"alg": None}), ("env-config", ENVS, {"env": None})):
        message = refusal(**given)
        assert message.startswith(
            f"--{flag} is missing: give --{flag}=NAME; available: {', '.join(files)}, or the path"
        )


def test_an_unknown_file_gets_the_nearest_one():
    assert refusal(alg="qmixx").startswith(
        f"--config=qmixx: there is no such config (did you mean qmix?); available: {', '.join(ALGS)}"
    )
    assert refusal(alg="qmix.yaml").startswith("--config=qmix.yaml: there is no such config (did you mean qmix?)")
    assert refusal(env="smaxx").startswith("--env-config=smaxx: there is no such config (did you mean smax?)")
    assert refusal(alg="../envs/smax").startswith("--config=../envs/smax: there is no such config")


def test_an_environment_named_as_an_algorithm_gets_the_right_flag():
    assert refusal(alg="smax").startswith("--config=smax: there is no such config (did you mean --env-config=smax?)")
    assert refusal(env="qmix").startswith("--env-config=qmix: there is no such config (did you mean --config=qmix?)")


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("lr: 1\ngamma: 0.5\nlr: 2\n", ":3", "the key 'lr' is given twice"),
        ("gate:\n  mode: hard\n  mode: none\n", ":3", "the key 'mode' is given twice"),
        ("lr: 1\n3: 4\n", ":2", "the key '3' is not text"),
        ("on: 1\n", ":1", "the key 'on' is not text"),
        ("? [a, b]\n: 1\n", ":1", "the key that is a list or block is not text"),
        ("", ":1", "expected lines of the form `key: value`, found None"),
        ("- lr\n", ":1", "expected lines of the form `key: value`, found ['lr']"),
        ("lr: [1\n", ":2", "expected ',' or ']'"),
        ("lr: 1\n  x: 2\n", ":2", "mapping values are not allowed here"),
        ("lr: !!python/name:os.system\n", ":1", "could not determine a constructor"),
        ("lr: \x00\n", "", "unacceptable character"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_line(own_yaml, text, where, problem):
    path = own_yaml(text)
    assert refusal(alg=path).startswith(f"{path}{where}: {problem}")


def test_a_folder_is_not_a_file(tmp_path):
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert refusal(alg=str(folder)) == f"{folder}: Is a directory"


def test_merge_keys_of_yaml_still_work(own_yaml):
    path = own_yaml("plugin:\n  a: &base {x: 1, y: 2}\n  b:\n    <<: *base\n    y: 3\n")
    assert with_(alg=path)["plugin"]["b"] == {"x": 1, "y": 3}


def test_files_of_the_project_are_named_from_its_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "(src/config/envs/smax.yaml)" in refusal("runner=episode")


# --- args


@pytest.fixture
def args():
    return freeze(with_("plugin.my_weight=0.3", "plugin.my_block.x=1", alg="greedy_qmix"))


def test_keys_are_attributes(args):
    config = with_()
    assert (args.lr, args.gate.mode, args.mixer) == (config["lr"], config["gate"]["mode"], config["mixer"])
    assert dict(**args.env_args) == config["env_args"]


def test_plugin_keys_are_attributes_too(args):
    assert args.my_weight == args.plugin["my_weight"] == 0.3
    assert args.my_block == {"x": 1}


def test_args_cannot_be_changed(args):
    for change in (
        lambda: setattr(args, "lr", 1),
        lambda: setattr(args.gate, "mode", "hard"),
        lambda: setattr(args, "new", 1),
    ):
        with pytest.raises(AttributeError, match=r"args are read-only, so '(lr|mode|new)' cannot be set"):
            change()
    with pytest.raises(AttributeError, match="args are read-only, so 'lr' cannot be deleted"):
        del args.lr
    assert args.lr == DEFAULTS["lr"]


def test_a_missing_attribute_names_the_nearest(args):
    with pytest.raises(AttributeError, match=r"no key 'gama' here; did you mean 'gamma'\?"):
        _ = args.gama
    with pytest.raises(AttributeError, match=r"no key 'mod' here; did you mean 'mode'\?"):
        _ = args.gate.mod
    with pytest.raises(AttributeError, match="no key 'zzz' here; keys of your own go below plugin"):
        _ = args.zzz
    assert getattr(args, "zzz", 5) == 5
    assert not hasattr(args, "zzz")


def test_args_are_independent_of_the_config_they_came_from():
    config = with_()
    args = freeze(config)
    config["gate"]["mode"] = config["env_args"]["map_name"] = "changed"
    assert (args.gate.mode, args.env_args["map_name"]) == ("direct", "3m")


def test_any_mapping_becomes_plain_dicts():
    class OtherDict(dict):
        """Such as sacred hands out."""

    args = freeze(OtherDict(lr=1, gate=OtherDict(p=1), env_args=OtherDict(a=OtherDict(b=(1, 2))), plugin=OtherDict()))
    assert args.gate.p == 1
    assert type(args.env_args) is type(args.env_args["a"]) is dict
    assert args.env_args["a"]["b"] == [1, 2]


def test_args_are_copied_and_pickled(args):
    for twin in (copy.deepcopy(args), copy.copy(args), pickle.loads(pickle.dumps(args))):
        assert twin == args
        assert twin.gate.mode == args.gate.mode
        with pytest.raises(AttributeError, match="read-only"):
            twin.lr = 1
    copy.deepcopy(args).env_args["map_name"] = "changed"
    assert args.env_args["map_name"] == "3m"
    assert args != extend(args, n_agents=3)


def test_args_become_a_plain_dict(args):
    plain = args.as_dict()
    assert plain["gate"] == with_()["gate"]
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    plain["env_args"]["map_name"] = "changed"
    assert args.env_args["map_name"] == "3m"


def test_extended_args_are_new_ones(args):
    more = extend(args, n_agents=3, device="cpu")
    assert (more.n_agents, more.device, more.lr, more.gate.mode) == (3, "cpu", args.lr, args.gate.mode)
    assert not hasattr(args, "n_agents")
    with pytest.raises(AttributeError, match="read-only"):
        more.n_agents = 4
    with pytest.raises(ValueError, match="args have 'my_weight' already; if it is a key below plugin, rename it"):
        extend(args, my_weight=1)


def test_the_config_package_imports_nothing_else_of_the_project():
    packages = {path.name for path in Path(config.schema.FOLDER.parent).iterdir()} - {"config"}
    modules = {name.removesuffix(".py") for name in packages}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & modules, path


@pytest.mark.parametrize("key", ["l\nr", "l\ud800r", "lr\0"])
def test_a_message_is_one_line_whatever_the_key(key):
    with pytest.raises(ConfigError) as error:
        load("qmix", "matrix_games", {key: 1})
    assert str(error.value).startswith(f"{key!r} (command line): a key is printable text")
    with pytest.raises(ConfigError) as error:
        load(key, "matrix_games", {})
    assert str(error.value).isprintable()
