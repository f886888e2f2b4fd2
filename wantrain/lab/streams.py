"""Plain TCP as a yardstick: N streams from one host to another, and the bytes per second that arrive.

`python -m wantrain.lab.streams receive STREAMS SKIP_S SECONDS` prints its port, then the rate; `... send ADDRESS PORT
STREAMS CONGESTION` sends until nobody reads.
"""

import contextlib
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

from wantrain.errors import UnreachableError
from wantrain.lab.lab import Lab

PIECE_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 20.0


def rate_bytes_per_s(
    lab: Lab, source: int, destination: int, *, streams: int, congestion: str, skip_s: float, seconds: float
) -> float:
    """What `streams` connections together carry from one host to another, in payload bytes per second.

    Args:
        congestion: TCP's congestion control for each connection.
        skip_s: after the first byte has arrived, not counted: connections begin slowly.
        seconds: counted after that.

    Raises:
        UnreachableError: no byte arrived, or one end failed; its words are on stderr.
    """
    here = [sys.executable, "-m", "wantrain.lab.streams"]
    where = Path(__file__).parents[2]  # the package is found there, installed or not
    receiver = lab.popen(
        destination,
        [*here, "receive", str(streams), str(skip_s), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=where,
    )
    with receiver:
        port = receiver.stdout.readline().strip() if receiver.stdout else ""
        sender = lab.popen(source, [*here, "send", lab.address(destination), port, str(streams), congestion], cwd=where)
        try:
            told = receiver.communicate(timeout=CONNECT_TIMEOUT_S + skip_s + seconds)[0].strip()
        except subprocess.TimeoutExpired:
            receiver.kill()
            told = ""
        sender.wait() if told else sender.kill()
    if not told:
        raise UnreachableError(
            f"nothing arrived from host {source} at host {destination}", hint="is the link down, or slower than a bit?"
        )
    return float(told)


def receive(streams: int, skip_s: float, seconds: float) -> float:
    """Accept `streams` connections on a port that is printed; bytes per second of all, as above."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=streams))
        listener.settimeout(CONNECT_TIMEOUT_S)
        print(listener.getsockname()[1], flush=True)
        ready = stack.enter_context(selectors.DefaultSelector())
        for _ in range(streams):
            connection = stack.enter_context(listener.accept()[0])
            connection.setblocking(False)
            ready.register(connection, selectors.EVENT_READ)
        piece = bytearray(PIECE_BYTES)
        ready.select()
        begin_s = time.monotonic() + skip_s
        counted = 0
        while (now_s := time.monotonic()) < begin_s + seconds:
            for key, _ in ready.select(begin_s + seconds - now_s):
                assert isinstance(key.fileobj, socket.socket)
                size_bytes = key.fileobj.recv_into(piece)
                if size_bytes == 0:
                    raise ConnectionError("the sender has closed its end")
                counted += size_bytes if now_s >= begin_s else 0
        return counted / seconds


def send(address: str, port: int, streams: int, congestion: str) -> None:
    """Fill `streams` connections until the other end closes them."""
    with contextlib.ExitStack() as stack:
        ready = stack.enter_context(selectors.DefaultSelector())
        for _ in range(streams):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.connect((address, port))
            connection.setblocking(False)
            ready.register(connection, selectors.EVENT_WRITE)
        piece = bytes(PIECE_BYTES)
        with contextlib.suppress(ConnectionError):
            while True:
                for key, _ in ready.select():
                    assert isinstance(key.fileobj, socket.socket)
                    with contextlib.suppress(BlockingIOError):
                        key.fileobj.send(piece)


def main() -> None:
    """One end of the streams, as of the module's docstring."""
    role, *given = sys.argv[1:]
    if role == "receive":
        print(receive(int(given[0]), float(given[1]), float(given[2])))
    else:
        send(given[0], int(given[1]), int(given[2]), given[3])


if __name__ == "__main__":
    main()
