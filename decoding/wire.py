"""Messages between the pool and a decoder process: one JSON object each, with file descriptors beside it."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
_LENGTH = struct.Struct("!I")
_MAX_MESSAGE_BYTES = 16 << 20  # a reply lists a clip's frame indices and times, nothing larger
_MAX_DESCRIPTORS = 2


class ConnectionClosed(Exception):
    """The other side is gone."""


def send_message(connection: socket.socket, message: Mapping[str, Json], descriptors: Sequence[int] = ()) -> None:
    """Sends one message.

    Raises:
        ConnectionClosed: the other side is gone.
    """
    body = json.dumps(message).encode()
    try:
        socket.send_fds(connection, [_LENGTH.pack(len(body))], list(descriptors))
        connection.sendall(body)
    except OSError as error:
        raise ConnectionClosed(str(error)) from error


def receive_message(connection: socket.socket) -> tuple[dict[str, Json], list[int]]:
    """Returns the next message and the file descriptors that came with it, which the caller must close.

    Raises:
        ConnectionClosed: the other side is gone, or what it sent is no message.
    """
    try:
        head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, _MAX_DESCRIPTORS)
        head += _receive(connection, _LENGTH.size - len(head)) if head else b""
        length = _LENGTH.unpack(head)[0] if head else 0
        if not 0 < length <= _MAX_MESSAGE_BYTES:
            raise ConnectionClosed(f"a message of {length} bytes")
        message = json.loads(_receive(connection, length))
    except (OSError, ValueError) as error:
        raise ConnectionClosed(str(error)) from error
    if not isinstance(message, dict):
        raise ConnectionClosed(f"a message that is no object: {message!r:.80}")
    return message, descriptors


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        piece = connection.recv(num_bytes - len(received))
        if not piece:
            raise ConnectionClosed(f"{len(received)} of {num_bytes} bytes came")
        received += piece
    return bytes(received)
