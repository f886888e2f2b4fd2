"""Whether a peer speaks the run's protocol, options and codecs; if not, what it has to install; pure."""

from collections.abc import Sequence

from wantrain.optimizers.stream import Stream
from wantrain.peers.codec_choice import codecs_of
from wantrain.peers.messages import Hello, Refused
from wantrain.transport.wire import PROTOCOL_VERSION


def refusal(hello: Hello, version: str, spec_digest: bytes, streams: Sequence[Stream]) -> Refused | None:
    """Why a peer cannot take part; None if it can.

    Args:
        hello: what it says of itself.
        version: of wantrain, here.
        spec_digest: of the run's options as they are understood here.
        streams: the run's.
    """
    if hello.protocol != PROTOCOL_VERSION:
        return Refused(
            "protocol",
            f"the run speaks protocol {PROTOCOL_VERSION} (wantrain {version}), "
            f"this peer {hello.protocol} (wantrain {hello.version})",
            f"install wantrain {version} on the peer",
        )
    if hello.spec_digest and hello.spec_digest != spec_digest:
        return Refused(
            "spec",
            f"the run's options come to {spec_digest.hex()[:16]} (wantrain {version}), "
            f"on this peer to {hello.spec_digest.hex()[:16]} (wantrain {hello.version})",
            f"install wantrain {version} on the peer: their versions differ in what an option means",
        )
    if missing := sorted(codecs_of(streams) - set(hello.codecs)):
        return Refused(
            "codec",
            f"the run's codecs {', '.join(missing)} are not among this peer's: {', '.join(hello.codecs)}",
            f"install wantrain {version} on the peer",
        )
    return None
