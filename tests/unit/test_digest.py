"""Digests: fixed for ever, since peers of different versions compare them; order, run and history all count."""

from wantrain.transport.digest import chunk_digest, first_link, next_link, update_digest


def test_digests_are_what_they_always_were() -> None:
    chunk = chunk_digest(b"chunk")
    assert chunk.hex() == "6b1d440ada61d0f4e4416c73bcbab3694f96875a3e5df3253075163ffe93cd4d"
    assert update_digest([chunk, chunk]).hex() == "ff4e88b8d531dc5cca07b3ed04ed962e00942dbec1533c110854c09a86632f0f"
    link = first_link(b"run", chunk)
    assert link.hex() == "ee41644064432f0dffa0cdd00278731c25a03ad09de2017c286131b8650ad9ab"
    assert next_link(link, chunk).hex() == "d90271d2d9883b26b6f4dc3908b1b7b1458898fd8f373a1ead9675f906aef2a7"


def test_the_order_of_chunks_counts() -> None:
    a, b = chunk_digest(b"a"), chunk_digest(b"b")
    assert len({update_digest(chunks) for chunks in ([], [a], [a, b], [b, a], [a, a])}) == 5


def test_another_run_or_history_gives_another_chain() -> None:
    a, b = chunk_digest(b"a"), chunk_digest(b"b")
    links = {first_link(b"one", a), first_link(b"two", a), first_link(b"one", b)}
    assert len({next_link(link, a) for link in links} | {next_link(link, b) for link in links}) == 6
