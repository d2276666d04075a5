"""A stand-in for StarCraft II's Linux binary `SC2_x64`, for tests: `python tests/fake_sc2 -listen 127.0.0.1 -port N`.

It speaks the game's protocol (one protobuf `Request` and `Response` per websocket message) as far as SMAC and SMACv2
need it, so that the real packages, with the real pysc2, play whole episodes without the game. What the battles are like
says nothing about the game's. It serves one client and ends with it. On command it fails; see `faults`. It is faster
than the game; FAKE_SC2_STEP_MS=4 lets each step take 4 ms at least.
"""

import argparse
import os
import socket
import sys
import time
from pathlib import Path

import faults
from battle import MAPS, MAX_ENERGY, SIZE, UNIT_TYPES, Battle, UnknownError
from connection import Connection

# Not as envs.s2clientprotocol_compat: that would import torch, and the game should start fast.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src" / "envs"))
import s2clientprotocol_compat

s2clientprotocol_compat.install()
from s2clientprotocol import sc2api_pb2 as sc_pb  # noqa: E402 (after the hook that lets it load)

STEP_SECONDS = float(os.environ.get("FAKE_SC2_STEP_MS", "0")) / 1000  # that a step takes at least
STOP, MOVE, ATTACK, HEAL = 4, 16, 23, 386  # ability ids


class Game:
    """Answers requests; one method for each kind, which fills in the response."""

    def __init__(self):
        self.status = sc_pb.launched
        self.map_name = ""
        self.seed: int | None = None
        self.battle: Battle  # from join_game on

    def answer(self, request):
        kind = request.WhichOneof("request")
        response = sc_pb.Response(id=request.id)
        handler = getattr(self, f"on_{kind}", None)
        try:
            if handler is None:
                raise UnknownError(f"the request {kind}")
            getattr(response, kind).SetInParent()
            handler(getattr(request, kind), getattr(response, kind))
        except UnknownError as error:
            response.error.append(f"the stand-in game does not know {error}")
        response.status = self.status
        return response

    def on_ping(self, request, response):
        response.game_version, response.data_build, response.base_build = "4.10.0", 75689, 75689

    def on_create_game(self, request, response):
        self.map_name = Path(request.local_map.map_path).stem
        if self.map_name not in MAPS:
            response.error = sc_pb.ResponseCreateGame.InvalidMapPath
            response.error_details = f"the stand-in game has no map {self.map_name}"
            return
        self.seed = request.random_seed if request.HasField("random_seed") else None
        self.status = sc_pb.init_game

    def on_join_game(self, request, response):
        response.player_id = 1
        self.on_restart_game(request, response)

    def on_restart_game(self, request, response):
        self.battle = Battle(self.map_name, self.seed)
        self.status = sc_pb.in_game

    def on_leave_game(self, request, response):
        self.status = sc_pb.launched

    def on_game_info(self, request, response):
        response.map_name = self.map_name
        start = response.start_raw
        start.map_size.x = start.map_size.y = SIZE
        start.playable_area.p0.x = start.playable_area.p0.y = 0
        start.playable_area.p1.x = start.playable_area.p1.y = SIZE
        start.pathing_grid.bits_per_pixel = 1
        start.pathing_grid.data = b"\xff" * (SIZE * SIZE // 8)  # walkable everywhere
        start.terrain_height.bits_per_pixel = 8
        start.terrain_height.data = b"\x7f" * (SIZE * SIZE)  # flat

    def on_data(self, request, response):
        for number in range(UNIT_TYPES):
            response.units.add(unit_id=number)

    def on_observation(self, request, response):
        battle = self.battle
        response.observation.game_loop = battle.frame
        units = response.observation.raw_data.units
        for unit in battle.units.values():
            seen = units.add()  # and one field after another, which is twice as fast as in one call
            kind = unit.kind
            seen.tag = unit.tag
            seen.owner = unit.owner
            seen.unit_type = unit.type
            seen.health = unit.health
            seen.health_max = kind.health
            seen.radius = kind.radius
            seen.weapon_cooldown = max(0, unit.ready_at - battle.frame)
            position = seen.pos
            position.x = unit.x
            position.y = unit.y
            if kind.shield:
                seen.shield = unit.shield
                seen.shield_max = kind.shield
            if kind.heals:
                seen.energy = unit.energy
                seen.energy_max = MAX_ENERGY

    def on_action(self, request, response):
        for action in request.actions:
            command = action.action_raw.unit_command
            goal, target_tag = None, 0
            if command.ability_id == MOVE:
                goal = (command.target_world_space_pos.x, command.target_world_space_pos.y)
            elif command.ability_id in (ATTACK, HEAL):
                target_tag = command.target_unit_tag
            elif command.ability_id != STOP:
                raise UnknownError(f"the ability {command.ability_id}")
            for tag in command.unit_tags:
                self.battle.order(tag, goal, target_tag)

    def on_step(self, request, response):
        until = time.perf_counter() + STEP_SECONDS
        self.battle.advance(request.count)
        response.simulation_loop = self.battle.frame
        while time.perf_counter() < until:
            pass  # not asleep: the game, too, keeps a core busy

    def on_debug(self, request, response):
        for command in request.debug:
            kind = command.WhichOneof("command")
            if kind == "kill_unit":
                self.battle.kill(command.kill_unit.tag)
            elif kind == "create_unit":
                new = command.create_unit
                for _ in range(new.quantity):
                    self.battle.create(new.unit_type, new.owner, new.pos.x, new.pos.y)
            elif kind != "draw":  # nobody looks
                raise UnknownError(f"the debug command {kind}")

    def on_save_replay(self, request, response):
        response.data = b"a replay of the stand-in game"

    def on_quit(self, request, response):
        self.status = sc_pb.quit


def serve(game: Game, connection: Connection, saboteur: faults.Saboteur) -> None:
    """Answer requests until the client quits or is gone."""
    while game.status != sc_pb.quit:
        try:
            request = sc_pb.Request.FromString(connection.receive())
            response = game.answer(request)
            fault = saboteur.after_step(game.battle) if request.HasField("step") else None
            if fault is None:
                connection.send(response.SerializeToString())
            else:
                faults.strike_in_battle(fault, connection)
        except (EOFError, ConnectionError):
            return


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-listen", required=True)
    parser.add_argument("-port", type=int, required=True)
    args, _ = parser.parse_known_args()  # the game's other options mean nothing here
    try:
        saboteur = faults.Saboteur(faults.parse(os.environ.get(faults.VARIABLE, "")))
    except ValueError as error:
        parser.error(f"{faults.VARIABLE}: {error}")
    fault = saboteur.at_start()
    if fault == "refuse":
        faults.refuse()
    with socket.create_server((args.listen, args.port)) as server:
        if fault == "deaf":
            faults.be_deaf()
        client, _ = server.accept()
    serve(Game(), Connection(client), saboteur)


main()
