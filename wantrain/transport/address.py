"""Where a link may listen or dial: "host:port" over TCP, "ipc://path" within one machine."""

import contextlib
import ipaddress
import os
import re
import socket

from wantrain.errors import AddressInUseError, ConfigError

MAX_IPC_PATH_BYTES = 103
"""The least that operating systems allow for the path of a socket."""

_TCP = re.compile(r"(\*|\[[0-9A-Fa-f:.%\w]+\]|[^\s:/@\[\]]+):([0-9]{1,5})")


def endpoint_of(address: str) -> str:
    """The address as ZeroMQ writes it.

    Args:
        address: "host:port" (an IPv6 host in brackets, "*" for all addresses of this host), or "ipc://" and an
            absolute path.

    Raises:
        ConfigError: it is neither.
    """
    if address.startswith("ipc:///") and len(os.fsencode(address)) <= len("ipc://") + MAX_IPC_PATH_BYTES:
        return address
    match = _TCP.fullmatch(address)
    if match is None or int(match[2]) > 65535:
        raise ConfigError(
            f"{address[:300]!r} is not an address",
            hint='use "host:port" (an IPv6 host in brackets), or "ipc://" and an absolute path of at most '
            f"{MAX_IPC_PATH_BYTES} bytes",
        )
    return f"tcp://{address}"


def is_loopback(address: str) -> bool:
    """Whether "host:port" names, as a literal address, an interface that nobody but this machine can reach."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_taken_path(path: str) -> None:
    """Check that nobody listens at the path of a socket: libzmq would take it away from its owner without a word.

    Raises:
        AddressInUseError: somebody answers there.
    """
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        probe.connect(path)
        raise AddressInUseError(f"ipc://{path} is taken by another process", hint="stop it, or use another path")
