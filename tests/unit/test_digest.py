"""Digests: fixed for ever, since peers of different versions compare them; order, run and history all count."""

from wantrain.transport.digest import chunk_digest, first_link, next_link, update_digest


def test_digests_are_what_they_always_were() -> None:
    chunk = chunk_digest(b"chunk")
    assert chunk.hex() == "6c87f68371b28954707ebb92afee7ccffb74c6f71ec8fea8a98cf6104289585b"
    assert update_digest([chunk, chunk]).hex() == "5e26980f80d721ebc9a9793f5a54e09f624d63984c3eb56433430799c9b93ac5"
    link = first_link(b"run", chunk)
    assert link.hex() == "8496ce749424e157e997d2e4d84936be9fd3c4e529c86461392620fc65099dda"
    assert next_link(link, chunk).hex() == "05022a4bd2a90516f037faa4217e053c8705606c887014b13a18dc3504e8456d"


def test_the_order_of_chunks_counts() -> None:
    a, b = chunk_digest(b"a"), chunk_digest(b"b")
    assert len({update_digest(chunks) for chunks in ([], [a], [a, b], [b, a], [a, a])}) == 5


def test_another_run_or_history_gives_another_chain() -> None:
    a, b = chunk_digest(b"a"), chunk_digest(b"b")
    links = {first_link(b"one", a), first_link(b"two", a), first_link(b"one", b)}
    assert len({next_link(link, a) for link in links} | {next_link(link, b) for link in links}) == 6
