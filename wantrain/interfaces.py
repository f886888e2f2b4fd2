"""Network interfaces of this host and their addresses, and what the settings of where to listen come to."""

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress
from pathlib import Path

from wantrain.addresses import join_address, split_address
from wantrain.errors import ConfigError

PEER_BIND = "0.0.0.0:0"
"""Where a peer listens if it is not told: at every address, on any free port."""
EVERY = ("0.0.0.0", "*", "::")
"""Hosts that stand for all addresses of this host."""
_SIOCGIFADDR = 0x8915
"""Linux: IPv4 address of an interface (netdevice(7))."""
_GLOBAL = "00"
"""Scope of an IPv6 address in /proc/net/if_inet6 that others can reach."""


def interface_addresses() -> dict[str, str]:
    """Every interface that has an address, with its first one: IPv4 if there is one."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                answer = fcntl.ioctl(asker.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            digits, _, _, scope, _, name = line.split()
            if scope == _GLOBAL:
                found.setdefault(name, str(ipaddress.IPv6Address(bytes.fromhex(digits))))
    return found


def interface_of(host: str) -> str:
    """Name of the interface with address `host`.

    Raises:
        ConfigError: no interface of this host has it.
    """
    found = {address: name for name, address in interface_addresses().items()}
    if host not in found:
        raise ConfigError(f"no network interface has the address {host}", hint=f"use one of {', '.join(found)}")
    return found[host]


def bind_address(bind: str, interface: str | None = None) -> str:
    """Where to listen, "host:port".

    Args:
        bind: "host:port"; port 0 takes any free one.
        interface: name of an interface, whose address takes the place of the host; None: as `bind` says.

    Raises:
        ConfigError: not an address, a port out of range, an unknown interface, or one that contradicts `bind`.
    """
    host, port = split_address(bind, lowest_port=0)
    if interface is None:
        return bind
    known = interface_addresses()
    if interface not in known:
        some = ", ".join(f"{name} ({address})" for name, address in known.items())
        raise ConfigError(
            f"no interface {interface!r} with an address; this host has {some}", hint="give --interface one of these"
        )
    if host not in (*EVERY, known[interface]):
        raise ConfigError(
            f"--bind {bind} is not an address of {interface}, which has {known[interface]}",
            hint="leave out one of --bind and --interface, or give --bind only a port, as 0.0.0.0:7701",
        )
    return join_address(known[interface], port)


def peer_bind(bind: str | None, interface: str | None, advertise: str | None, *, outbound_only: bool) -> str | None:
    """Where a peer listens by its options, "host:port"; None: nowhere, as it only dials out.

    Raises:
        ConfigError: see `bind_address`; or options that contradict each other.
    """
    if advertise is not None:
        split_address(advertise)
    if not outbound_only:
        return bind_address(bind or PEER_BIND, interface)
    given = {"--bind": bind, "--interface": interface, "--advertise": advertise}
    wrong = [option for option, value in given.items() if value is not None]
    if wrong:
        raise ConfigError(
            f"--outbound-only together with {' and '.join(wrong)}: who only dials out listens nowhere",
            hint="leave out --outbound-only, or the others",
        )
    return None
