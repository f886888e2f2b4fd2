"""Addresses as people write them, "host:port", and the one that this host is known by."""

import socket

from wantrain.errors import ConfigError


def split_address(address: str, *, lowest_port: int = 1) -> tuple[str, int]:
    """Host and port of "host:port"; an IPv6 host is in brackets and comes back without them.

    Raises:
        ConfigError: not of that form, or the port is not in lowest_port…65535.
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    well_formed = bare and bare.isprintable() and not set(bare) & set(" /[]") and (bracketed or ":" not in bare)
    if not (well_formed and port.isascii() and port.isdigit() and len(port) <= 5 and lowest_port <= int(port) <= 65535):
        raise ConfigError(
            f"{address!r} is not an address; allowed is host:port with a port from {lowest_port} to 65535",
            hint="write it like 203.0.113.5:7700, train.example.org:7700 or [2001:db8::5]:7700",
        )
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """ "host:port", with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def advertised_address(bind: str, advertise: str = "") -> str:
    """The address that others are told: `advertise` if given, else that of `bind`.

    A `bind` to every interface stands for this host's primary address: that of the default route. It is found by
    connecting a datagram socket, which sends nothing.

    Raises:
        ConfigError: a bad address, port 0, or a host without a default route.
    """
    if advertise:
        return join_address(*split_address(advertise))
    host, port = split_address(bind, lowest_port=0)
    if port == 0:
        raise ConfigError(
            f"the port of {bind} is only known when somebody listens there",
            hint="set [coordinator] advertise to host:port, or give the address as an option",
        )
    if host not in {"0.0.0.0", "*", "::"}:
        return join_address(host, port)
    family, probe = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as outward:
            outward.connect((probe, 9))
            return join_address(outward.getsockname()[0], port)
    except OSError as error:
        raise ConfigError(
            f"this host has no primary address for {bind}: {error}",
            hint="say by --advertise (or advertise in run.toml) where others reach it; a peer may be --outbound-only",
        ) from None
