"""The server's side of one websocket (RFC 6455), as far as pysc2's client makes use of it."""

import base64
import hashlib
import socket
import struct

KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10  # opcodes


class Connection:
    """Takes messages from the client and sends it some, after answering its HTTP request to become a websocket."""

    def __init__(self, client: socket.socket):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = client
        self.reader = client.makefile("rb")
        self.reader.readline()  # GET /sc2api
        headers = {}
        while line := self.reader.readline().strip():
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        accept = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + KEY).digest())
        client.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def receive(self) -> bytes:
        """The next message. pysc2's client sends each in one frame, masked with four bytes.

        Raises:
            EOFError: the client is gone.
        """
        while True:
            opcode, length = self._read(2)
            length &= 127
            if length == 126:
                (length,) = struct.unpack(">H", self._read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._read(8))
            mask = self._read(4)
            payload = unmask(self._read(length), mask)
            if opcode & 15 == CLOSE:
                raise EOFError
            if opcode & 15 == PING:
                self.send(payload, PONG)
            elif opcode & 15 in (TEXT, BINARY):  # the client calls its messages text
                return payload

    def send(self, payload: bytes, opcode: int = BINARY) -> None:
        size = len(payload)
        if size < 126:
            head = bytes([128 | opcode, size])
        elif size < 65536:
            head = struct.pack(">BBH", 128 | opcode, 126, size)
        else:
            head = struct.pack(">BBQ", 128 | opcode, 127, size)
        self.client.sendall(head + payload)

    def close(self) -> None:
        """End the connection at once, without the websocket's farewell."""
        self.client.shutdown(socket.SHUT_RDWR)

    def _read(self, size: int) -> bytes:
        data = self.reader.read(size)
        if len(data) < size:
            raise EOFError
        return data


def unmask(payload: bytes, mask: bytes) -> bytes:
    """The payload with each byte changed by the mask's four in turn; as one big number, since a loop would be slow."""
    size = len(payload)
    pattern = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(pattern)).to_bytes(size)
