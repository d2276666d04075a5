"""A stand-in for StarCraft II's Linux binary `SC2_x64`, for tests: `python tests/fake_sc2 -listen 127.0.0.1 -port N`.

It speaks the game's protocol (one protobuf `Request` and `Response` per websocket message) as far as SMAC needs it, so
that the real SMAC and pysc2 play whole episodes without the game. What the battles are like says nothing about the
game's. It serves one client and ends with it.
"""

import argparse
import base64
import hashlib
import socket
import struct
import sys
from pathlib import Path

from battle import HEALTH, MAPS, RADIUS, SIZE, UNIT_TYPES, Battle

# Not as envs.s2clientprotocol_compat: that would import torch, and the game should start fast.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src" / "envs"))
import s2clientprotocol_compat

s2clientprotocol_compat.install()
from s2clientprotocol import sc2api_pb2 as sc_pb  # noqa: E402 (after the hook that lets it load)

STOP, MOVE, ATTACK = 4, 16, 23  # ability ids
WEBSOCKET_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10  # websocket opcodes


class Game:
    """Answers requests; one method for each kind, which fills in the response."""

    def __init__(self):
        self.status = sc_pb.launched
        self.map_name = ""
        self.seed: int | None = None
        self.battle: Battle | None = None

    def answer(self, request):
        kind = request.WhichOneof("request")
        response = sc_pb.Response(id=request.id)
        handler = getattr(self, f"on_{kind}", None)
        if handler is None:
            response.error.append(f"the stand-in game does not know the request {kind}")
        else:
            getattr(response, kind).SetInParent()
            handler(getattr(request, kind), getattr(response, kind))
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
        self.battle = Battle(self.map_name, self.seed)
        self.status = sc_pb.in_game

    def on_game_info(self, request, response):
        start = response.start_raw
        start.map_size.x = start.map_size.y = SIZE
        start.playable_area.p0.x = start.playable_area.p0.y = 0
        start.playable_area.p1.x = start.playable_area.p1.y = SIZE
        start.pathing_grid.bits_per_pixel = 1
        start.pathing_grid.data = b"\xff" * (SIZE * SIZE // 8)  # walkable everywhere
        start.terrain_height.bits_per_pixel = 8
        start.terrain_height.data = b"\x7f" * (SIZE * SIZE)  # flat

    def on_observation(self, request, response):
        response.observation.game_loop = self.battle.frame
        for unit in self.battle.units.values():
            seen = response.observation.raw_data.units.add(
                tag=unit.tag,
                owner=unit.owner,
                unit_type=UNIT_TYPES[unit.owner],
                health=unit.health,
                health_max=HEALTH,
                weapon_cooldown=unit.cooldown,
                radius=RADIUS,
            )
            seen.pos.x, seen.pos.y = unit.x, unit.y

    def on_action(self, request, response):
        for action in request.actions:
            command = action.action_raw.unit_command
            point = command.target_world_space_pos
            targets = {STOP: None, MOVE: (point.x, point.y), ATTACK: command.target_unit_tag}
            for tag in command.unit_tags:
                self.battle.order(tag, targets[command.ability_id])

    def on_step(self, request, response):
        self.battle.advance(request.count)

    def on_debug(self, request, response):
        for command in request.debug:
            self.battle.kill(command.kill_unit.tag)

    def on_save_replay(self, request, response):
        response.data = b"a replay of the stand-in game"

    def on_quit(self, request, response):
        self.status = sc_pb.quit


def open_websocket(reader, writer) -> None:
    """Answer the client's HTTP request to become a websocket."""
    reader.readline()  # GET /sc2api
    headers = {}
    while line := reader.readline().strip():
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    accept = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + WEBSOCKET_KEY).digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    writer.flush()


def receive(reader, writer) -> bytes:
    """The next message. pysc2's client sends each in one frame, masked with four bytes."""
    while True:
        opcode, length = _read(reader, 2)
        length &= 127
        if length == 126:
            (length,) = struct.unpack(">H", _read(reader, 2))
        elif length == 127:
            (length,) = struct.unpack(">Q", _read(reader, 8))
        mask = _read(reader, 4)
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(_read(reader, length)))
        if opcode & 15 == CLOSE:
            raise EOFError
        if opcode & 15 == PING:
            send(writer, payload, PONG)
        elif opcode & 15 in (TEXT, BINARY):  # the client calls its messages text
            return payload


def send(writer, payload: bytes, opcode: int = BINARY) -> None:
    size = len(payload)
    if size < 126:
        head = bytes([128 | opcode, size])
    elif size < 65536:
        head = struct.pack(">BBH", 128 | opcode, 126, size)
    else:
        head = struct.pack(">BBQ", 128 | opcode, 127, size)
    writer.write(head + payload)
    writer.flush()


def _read(reader, size: int) -> bytes:
    data = reader.read(size)
    if len(data) < size:
        raise EOFError
    return data


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-listen", required=True)
    parser.add_argument("-port", type=int, required=True)
    args, _ = parser.parse_known_args()  # the game's other options mean nothing here
    with socket.create_server((args.listen, args.port)) as server:
        client, _ = server.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader, writer = client.makefile("rb"), client.makefile("wb")
    open_websocket(reader, writer)
    game = Game()
    while game.status != sc_pb.quit:
        try:
            send(writer, game.answer(sc_pb.Request.FromString(receive(reader, writer))).SerializeToString())
        except (EOFError, ConnectionError):
            return


main()
