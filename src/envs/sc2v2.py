"""StarCraft II battles with random teams and positions: an adapter over SMACv2 (package `smacv2` of oxwhirl/smacv2).

The same seed gives the same sequence of teams and positions, which SMACv2 itself draws without a seed.
"""

import copy
import importlib
import importlib.util
import inspect
import random
import sys
from typing import Any

import numpy as np

from envs.sc2 import Smac, StarCraft2Env, did_you_mean, failures, import_package, map_files
from utils.errors import UserError

REMEDY = "run `bash install_sc2.sh --smacv2`, or use --env-config=smax with env_args.map_name=smacv2_5_units"
# What SMACv2 reads in env_args.capability_config.
CAPABILITIES = ("n_units", "n_enemies", "team_gen", "start_positions", "attack", "health", "enemy_mask")


class StarCraft2V2Env(StarCraft2Env):
    """One StarCraft II battle of SMACv2; see `StarCraft2Env` for what is different from SMAC's own class.

    Args:
        map_name: one of SMACv2's maps.
        capability_config: how each battle's teams, positions and so on are drawn, as in SMACv2.
        seed: of the game, and of what is drawn.
        **env_args: the other arguments of SMACv2's `StarCraft2Env`; `src/config/envs/sc2_gen_terran.yaml` lists them.

    Raises:
        UserError: the game, the package smacv2 or the map is missing, or an argument is unknown.
    """

    def __init__(self, map_name: str = "10gen_terran", *, capability_config: dict, seed: int | None = None, **env_args):
        for key in capability_config:
            if key not in CAPABILITIES:
                raise UserError(
                    f"env_args.capability_config.{key}: SMACv2 has no such key{did_you_mean(key, CAPABILITIES)}"
                )
        self._draws_seed = seed
        # SMACv2 writes into it.
        super().__init__(map_name, capability_config=copy.deepcopy(capability_config), seed=seed, **env_args)

    def _load(self) -> Smac:
        smac = load_smacv2()
        _seed_draws(self._draws_seed)
        return smac

    @property
    def _battle(self):
        return self.env.env


def load_smacv2() -> Smac:
    """Import SMACv2.

    Raises:
        UserError: the package is not installed, or lacks something that it imports.
    """
    spec = importlib.util.find_spec("smacv2")
    if spec is None:
        raise UserError(f"the package smacv2 is not installed in {sys.prefix}; {REMEDY}")
    module = import_package("smacv2", f"{spec.origin}", REMEDY)
    arguments = inspect.signature(module.StarCraft2Env).parameters
    unable = importlib.import_module("smacv2.env.starcraft2.starcraft2").CannotResetException
    return Smac(module.StarCraftCapabilityEnvWrapper, arguments, map_files("smacv2"), (*failures(), unable), REMEDY)


def _seed_draws(seed: int | None) -> None:
    """Let what SMACv2 draws from now on follow the seed: its generators are made when the environment is."""
    distributions: Any = importlib.import_module("smacv2.env.starcraft2.distributions")
    sequence = np.random.SeedSequence(seed)
    choices = random.Random(seed)
    distributions.default_rng = lambda: np.random.default_rng(sequence.spawn(1)[0])
    distributions.choice, distributions.shuffle = choices.choice, choices.shuffle
