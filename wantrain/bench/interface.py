"""Which network interface of this host has an address: gloo is told the interface, not the address."""

import fcntl
import socket
import struct

from wantrain.errors import ConfigError

SIOCGIFADDR = 0x8915
"""Linux: address of an interface (netdevice(7))."""


def interface_of(host: str) -> str:
    """Name of the interface with IPv4 address `host`.

    Raises:
        ConfigError: no interface of this host has it.
    """
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asker.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no IPv4 address
                continue
            found[socket.inet_ntoa(answer[20:24])] = name
    if host not in found:
        raise ConfigError(f"no network interface has the address {host}", hint=f"use one of {', '.join(found)}")
    return found[host]
