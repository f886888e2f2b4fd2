"""The listening socket of a link: where it is bound, who is admitted to it, and who a message on it is from."""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq

from wantrain.errors import AddressInUseError, ConfigError
from wantrain.transport.address import endpoint_of, refuse_taken_path
from wantrain.transport.zmq_lanes import LOCAL
from wantrain.transport.zmq_sockets import PLAIN_ROUTE_BYTES, KeyPair, Socket, Sockets

MAX_NAME_CHARS = 64

Admit = Callable[[bytes], str | None]


class Listener:
    """A ROUTER; over TCP with CURVE, and only for those whose key `admit` knows.

    Args:
        sockets: makes them.
        bind: "host:port" or "ipc://path".
        key: our CURVE (public, secret) key pair; None for ipc, and for plain TCP, which authenticates nobody.
        admit: gives the name of the holder of a CURVE public key, or None to turn it away.
        on_message: takes one message off the socket; False if there was none.
        on_refused: is told why somebody was turned away.

    Raises:
        ConfigError: an address that cannot be used.
        AddressInUseError: another process listens there.
    """

    def __init__(
        self,
        sockets: Sockets,
        bind: str,
        key: KeyPair | None,
        admit: Admit | None,
        on_message: Callable[[Socket], bool],
        on_refused: Callable[[str], None],
    ) -> None:
        endpoint = endpoint_of(bind)
        self.ipc = bind.startswith("ipc://")
        self._plain = key is None
        self._admit = admit
        self._on_refused = on_refused
        self._path: Path | None = None
        self.socket = router = sockets.make(zmq.ROUTER, bind)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self.ipc:
            refuse_taken_path(bind.removeprefix("ipc://"))
        elif key is not None:
            zap = sockets.make(zmq.REP, bind)
            zap.bind("inproc://zeromq.zap.01")
            sockets.watch(zap, lambda: self._take_zap(zap))
            router.setsockopt(zmq.ZAP_DOMAIN, b"wantrain")
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_PUBLICKEY, key[0])
            router.setsockopt(zmq.CURVE_SECRETKEY, key[1])
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise AddressInUseError(
                    f"{bind} is taken by another process", hint="stop it, or choose another port (0 takes any free one)"
                ) from error
            low = error.errno == errno.EACCES
            raise ConfigError(
                f"cannot listen at {bind}: {error.strerror if low else 'it is no address of this host'}",
                hint="choose a port above 1023" if low else "0.0.0.0 stands for every address that it has",
            ) from error
        self.address = router.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://")
        """Where it listens, with the real port."""
        self.port = 0 if self.ipc else int(self.address.rpartition(":")[2])
        if self.ipc:
            self._path = Path(bind.removeprefix("ipc://"))
            self._path.chmod(0o600)
        sockets.watch(router, lambda: on_message(router))
        if not self.ipc:
            sockets.monitor(router, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED, bind, lambda event, value: None)

    def stop_monitoring(self) -> None:
        """See `Dialled.stop_monitoring`."""
        self.socket.monitor(None, 0)

    def source_of(self, frames: Sequence[zmq.Frame]) -> str:
        """Who sent a message; "" if nobody is known to have: it must be dropped."""
        if self.ipc:
            return LOCAL
        if self._plain:
            name = bytes(frames[0].buffer)[PLAIN_ROUTE_BYTES:].decode(errors="replace")
            return name if len(name) <= MAX_NAME_CHARS and name.isprintable() else ""
        try:
            return str(frames[-1].get("User-Id"))
        except (ValueError, zmq.ZMQError):  # no ZAP, no name: must not happen
            return ""

    def release_path(self) -> None:
        """Remove the socket's file, which libzmq leaves: before the socket is closed it cannot be a successor's."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def _take_zap(self, zap: Socket) -> bool:
        """Answer one question of the listening socket, https://rfc.zeromq.org/spec/27."""
        try:
            version, request, _, host, _, mechanism, *credentials = zap.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        name = None
        if mechanism == b"CURVE" and self._admit is not None:
            name = self._admit(credentials[0])
        if name is None:
            key = credentials[0].hex()[:16] if credentials else ""
            self._on_refused(f"key {key}… from {host.decode(errors='replace')} is not admitted")
            answer = [b"400", b"not admitted", b""]
        else:
            answer = [b"200", b"", name.encode()]
        zap.send_multipart([version, request, *answer, b""], zmq.NOBLOCK)
        return True
