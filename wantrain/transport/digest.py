"""Digests of what was moved: of a chunk, of a whole update, and the chain over all committed updates."""

import hashlib
from collections.abc import Iterable

from blake3 import blake3

from wantrain.transport.wire import Buffer

DIGEST_BYTES = 32


def chunk_digest(payload: Buffer) -> bytes:
    """BLAKE3 of a chunk's encoded bytes, which every peer takes of all that it receives: nearly 3 times as fast."""
    return blake3(payload).digest()


def update_digest(chunk_digests: Iterable[bytes]) -> bytes:
    """Digest of an update: SHA-256 over its chunks' digests in order, so that chunks can be checked one by one."""
    return hashlib.sha256(b"update" + b"".join(chunk_digests)).digest()


def state_digest(chunk_digests: Iterable[bytes]) -> bytes:
    """Digest of a state: SHA-256 over its chunks' digests in order, so that states can be compared chunk by chunk."""
    return hashlib.sha256(b"state" + b"".join(chunk_digests)).digest()


def first_link(run: bytes, state_digest: bytes) -> bytes:
    """chain[0]: the run and its initial state."""
    return hashlib.sha256(b"genesis" + run + state_digest).digest()


def next_link(chain: bytes, digest: bytes) -> bytes:
    """chain[n] = H(chain[n-1] ‖ digest of update n)."""
    return hashlib.sha256(b"commit" + chain + digest).digest()
