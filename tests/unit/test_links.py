"""Every link keeps the same rules (conformance), and the one over ZeroMQ lets in nobody but those who are admitted."""

import hashlib
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
import zmq
from zmq.utils import z85

from wantrain.errors import AddressInUseError, ConfigError, WireError
from wantrain.transport.auth import Identity, RunKeys
from wantrain.transport.link import Connected, Disconnected, Dropped, Link, LinkEvent, Received
from wantrain.transport.memory_link import MemoryHub, MemoryLink
from wantrain.transport.wire import MAX_BUFFER_BYTES, Message, encode
from wantrain.transport.zmq_lanes import LOCAL
from wantrain.transport.zmq_link import ZmqLink
from wantrain.transport.zmq_sockets import ZERO_COPY_BYTES

RUN, OTHER_RUN = b"run-id-8", b"otherrun"
DEADLINE_S = 20.0
SERVER, CLIENT, STRANGER = Identity.create(), Identity.create(), Identity.create()


def pair(identity: Identity) -> tuple[bytes, bytes]:
    return identity.curve_public, identity.curve_secret


def admit(key: bytes) -> str | None:
    return {CLIENT.curve_public: "client", SERVER.curve_public: "server"}.get(key)


class World:
    """Makes the links of one kind and closes them at the end."""

    client = "client"
    """Source under which the server sees the client."""

    def __init__(self) -> None:
        self.links: list[Link] = []

    def server(self) -> Link:
        raise AssertionError

    def dialler(self, run: bytes = RUN) -> Link:
        raise AssertionError

    def keep(self, link: Link) -> Link:
        self.links.append(link)
        return link

    def connect(self, link: Link) -> None:
        raise AssertionError

    def close(self) -> None:
        for link in self.links:
            link.close()


class MemoryWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.hub = MemoryHub()

    def server(self) -> Link:
        return self.keep(MemoryLink(self.hub, "server", RUN))

    def dialler(self, run: bytes = RUN) -> Link:
        return self.keep(MemoryLink(self.hub, "client", run))

    def connect(self, link: Link) -> None:
        link.connect("server", "", b"")


class TcpWorld(World):
    address = "127.0.0.1:0"

    def server(self) -> Link:
        link = ZmqLink(RUN, bind=self.address, key=pair(SERVER), admit=admit)
        self.address = link.address
        return self.keep(link)

    def dialler(self, run: bytes = RUN) -> Link:
        return self.keep(ZmqLink(run, key=pair(CLIENT)))

    def connect(self, link: Link) -> None:
        link.connect("server", self.address, SERVER.curve_public)


class IpcWorld(World):
    client = LOCAL

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.address = f"ipc://{folder}/link"

    def server(self) -> Link:
        return self.keep(ZmqLink(RUN, bind=self.address))

    def dialler(self, run: bytes = RUN) -> Link:
        return self.keep(ZmqLink(run))

    def connect(self, link: Link) -> None:
        link.connect("server", self.address, b"")


class PlainWorld(World):
    address = "127.0.0.1:0"

    def server(self) -> Link:
        link = ZmqLink(RUN, bind=self.address, plain=True)
        self.address = link.address
        return self.keep(link)

    def dialler(self, run: bytes = RUN) -> Link:
        return self.keep(ZmqLink(run, plain=True, name="client"))

    def connect(self, link: Link) -> None:
        link.connect("server", self.address, b"")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a name short enough for the path of a socket."""
    with tempfile.TemporaryDirectory(prefix="wt") as name:
        yield Path(name)


@pytest.fixture(params=["memory", "tcp", "ipc", "plain"])
def world(request: pytest.FixtureRequest, folder: Path) -> Iterator[World]:
    kinds: dict[str, Callable[[], World]] = {
        "memory": MemoryWorld, "tcp": TcpWorld, "ipc": lambda: IpcWorld(folder), "plain": PlainWorld
    }  # fmt: skip
    made = kinds[request.param]()
    yield made
    made.close()


def until(condition: Callable[[list[LinkEvent]], bool], *links: Link) -> list[LinkEvent]:
    """Poll the links in turn until their events so far meet the condition."""
    events: list[LinkEvent] = []
    deadline = time.monotonic() + DEADLINE_S
    while not condition(events):
        assert time.monotonic() < deadline, f"nothing but {events[-5:]}"
        for link in links:
            events += link.poll(0.01)
    return events


def has(*wanted: type | LinkEvent) -> Callable[[list[LinkEvent]], bool]:
    def check(events: list[LinkEvent]) -> bool:
        return all(any(event == want or type(event) is want for event in events) for want in wanted)

    return check


def received(events: list[LinkEvent]) -> list[Received]:
    return [event for event in events if isinstance(event, Received)]


def deliver(sender: Link, peer: str, message: Message, receiver: Link) -> Received:
    """Send until it goes, then poll the receiver until it is there."""
    until(lambda _: sender.send(peer, message), sender, receiver)
    return received(until(has(Received), receiver, sender))[-1]


def connected(world: World) -> tuple[Link, Link]:
    server, client = world.server(), world.dialler()
    world.connect(client)
    until(has(Connected("server")), client, server)
    return server, client


def test_messages_arrive_whole_and_from_who_sent_them(world: World) -> None:
    server, client = connected(world)
    floats = memoryview(bytearray(os.urandom(64))).cast("f")
    message = Message(
        "Part", {"x": [1, "größe", b"\x00", None, 2.5]}, (b"", b"abc", bytearray(ZERO_COPY_BYTES), floats)
    )
    arrived = deliver(client, "server", message, server)
    assert arrived.message == message
    assert arrived.source == world.client


def test_messages_arrive_in_order(world: World) -> None:
    server, client = connected(world)
    numbers: list[int] = []
    sent = 0
    while len(numbers) < 500:
        while sent < 500 and client.send("server", Message("N", {"n": sent}, (bytes(sent * 100),))):
            sent += 1
        numbers += [event.message.body["n"] for event in received([*server.poll(0.01), *client.poll(0)])]
    assert numbers == list(range(500))


def test_one_dialled_connection_works_both_ways(world: World) -> None:
    server, client = connected(world)
    arrived = deliver(client, "server", Message("Hello"), server)
    assert server.reply(arrived.connection, Message("Reply"))
    assert server.send(world.client, Message("More"))
    back = received(until(lambda events: len(received(events)) == 2, client, server))
    assert [(event.source, event.message.kind) for event in back] == [("server", "Reply"), ("server", "More")]
    assert client.reply(back[0].connection, Message("Answer"))
    assert received(until(has(Received), server, client))[0].message.kind == "Answer"


def test_who_is_dialled_has_a_way_back_before_anything_is_said(world: World) -> None:
    """A newcomer may be dialled by a peer that has nothing to say to it, and must ask it for the state."""
    server, client = connected(world)
    until(lambda _: server.ways() == {world.client: "in"}, client, server)
    assert client.ways() == {"server": "out"}
    assert server.send(world.client, Message("WantState"))
    assert received(until(has(Received), server, client))[0].message.kind == "WantState"


def test_a_way_is_gone_when_its_connection_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wantrain.transport.zmq_link._ROUTE_CHECK_S", 0.0)
    server, client = connected(world)
    until(lambda _: world.client in server.ways(), client, server)
    client.close()
    until(lambda _: server.ways() == {}, server)


def test_a_peer_that_both_dial_is_reached_both_ways(world: World) -> None:
    if not isinstance(world, MemoryWorld):
        pytest.skip("the links of the other worlds have one listener")
    server, client = connected(world)
    server.connect("client", "", b"")
    server.poll(0)
    assert (server.ways(), client.ways()) == ({"client": "both"}, {"server": "both"})


def test_large_buffers_arrive_unchanged(world: World) -> None:
    server, client = connected(world)
    buffers = tuple(os.urandom(4 << 20) for _ in range(3))
    arrived = deliver(client, "server", Message("Part", {}, buffers), server)
    digests = [hashlib.sha256(buffer).digest() for buffer in arrived.message.buffers]
    assert digests == [hashlib.sha256(buffer).digest() for buffer in buffers]


def test_full_queue_gives_false_and_recovers(world: World) -> None:
    server, client = connected(world)
    message = Message("Part", {}, (bytes(256 << 10),))
    sent = 0
    while client.send("server", message):
        sent += 1
        assert sent < 2000, "the queue is not bounded"
    arrived = received(until(lambda events: len(received(events)) == sent, server, client))
    assert len(arrived) == sent
    deliver(client, "server", Message("After"), server)


def test_done_is_called_once_from_poll_when_the_buffers_are_free(world: World) -> None:
    server, client = connected(world)
    done: list[int] = []
    for number in range(3):
        message = Message("Part", {"n": number}, (bytearray(1 << 20), b"small"))
        assert client.send("server", message, partial(done.append, number))
    assert client.send("server", Message("Bare"), lambda: done.append(3))
    assert not done
    until(lambda _: len(done) == 4, client, server)
    assert not client.send("nobody", Message("Part"), lambda: done.append(99))
    client.poll(0)
    assert sorted(done) == [0, 1, 2, 3]


def test_done_is_called_when_the_connection_or_the_link_is_gone(world: World) -> None:
    server, client = connected(world)
    done: list[int] = []
    sent = 0
    while client.send("server", Message("Part", {}, (bytes(256 << 10),)), lambda: done.append(1)):
        sent += 1
    assert client.send("nobody", Message("Part"), lambda: done.append(99)) is False
    client.disconnect("server")
    until(lambda _: len(done) == sent > 0, client)
    client.close()
    assert 99 not in done


def test_who_is_unknown_or_not_connected_gets_nothing(world: World) -> None:
    client = world.dialler()
    assert not client.send("server", Message("Hello"))
    world.connect(client)
    assert not client.send("server", Message("Hello"))
    assert not client.reply(b"d12345678", Message("Hello"))
    assert client.stats().get("server") is None


def test_disconnect_drops_what_is_queued_and_connect_dials_again(world: World) -> None:
    server, client = connected(world)
    arrived = deliver(client, "server", Message("Hello"), server)
    client.disconnect("server")
    client.disconnect("server")
    assert not client.send("server", Message("Hello"))
    until(lambda _: not server.reply(arrived.connection, Message("Late")), server, client)
    world.connect(client)
    until(has(Connected("server")), client, server)
    again = deliver(client, "server", Message("Hello"), server)
    assert again.connection != arrived.connection
    assert server.send(world.client, Message("Back"))
    assert received(until(has(Received), client, server))[0].message.kind == "Back"


def test_connecting_again_with_the_same_arguments_changes_nothing(world: World) -> None:
    server, client = connected(world)
    world.connect(client)
    assert client.send("server", Message("Hello"))
    assert has(Disconnected)(until(has(Received), server, client)) is False


def test_link_dials_again_after_the_server_was_restarted(world: World) -> None:
    server, client = connected(world)
    deliver(client, "server", Message("Before"), server)
    server.close()
    until(has(Disconnected), client)
    assert not client.send("server", Message("Lost"))
    server = world.server()
    until(has(Connected("server")), client, server)
    assert deliver(client, "server", Message("After"), server).message.kind == "After"


@pytest.mark.parametrize("count", [1, 3])
def test_what_came_on_a_connection_is_handed_out_before_its_end(
    folder: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = connected(IpcWorld(folder))
    assert isinstance(client, ZmqLink)
    deliver(client, "server", Message("Question"), server)
    for _ in range(count):
        assert server.send(LOCAL, Message("Answer"))
    dial = client._dials["server"]
    assert dial.dialled is not None
    waiting = []
    while len(waiting) < count:
        assert dial.dialled.socket.poll(DEADLINE_S * 1000)
        waiting.append(client._sockets.receive(dial.dialled.socket))
    monkeypatch.setattr(client._sockets, "receive", lambda socket: waiting.pop(0) if waiting else [])
    # Messages and the end of their connection come by two ways, and either may be looked at first.
    client._monitored(dial, zmq.EVENT_DISCONNECTED)
    events = client.poll(0.0)
    client.close()
    server.close()
    assert [type(event) for event in events] == [Received] * count + [Disconnected]


def test_newest_connection_of_a_peer_is_the_way_to_it(world: World) -> None:
    server, old = connected(world)
    deliver(old, "server", Message("Old"), server)
    new = world.dialler()
    world.connect(new)
    until(has(Connected("server")), new, server)
    deliver(new, "server", Message("New"), server)
    assert server.send(world.client, Message("Back"))
    assert received(until(has(Received), new, server))[0].message.kind == "Back"


def test_stats_count_messages_and_bytes_at_both_ends(world: World) -> None:
    server, client = connected(world)
    for number in range(3):
        deliver(client, "server", Message("Part", {"n": number}, (bytes(1000),)), server)
    sent, arrived = client.stats()["server"], server.stats()[world.client]
    assert sent.messages_sent == arrived.messages_received == 3
    assert 3000 < sent.bytes_sent == arrived.bytes_received < 3300
    assert sent.messages_received == arrived.messages_sent == arrived.dropped == 0


def deliver_bulk(sender: Link, peer: str, message: Message, receiver: Link) -> Received:
    """Send in bulk as soon as there is a way, then poll the receiver until it is there."""
    until(lambda _: sender.send_bulk(peer, message), sender, receiver)
    return received(until(has(Received), receiver, sender))[-1]


def test_bulk_arrives_whole_and_from_who_sent_it(world: World) -> None:
    server, client = connected(world)
    message = Message("Part", {"x": [1]}, (os.urandom(1 << 20), b"small", b""))
    arrived = deliver_bulk(client, "server", message, server)
    assert (arrived.message, arrived.source) == (message, world.client)
    assert server.reply(arrived.connection, Message("Thanks"))
    assert received(until(has(Received), client, server))[0].message.kind == "Thanks"


def test_bulk_goes_back_to_a_peer_that_can_only_dial_out(world: World) -> None:
    server, client = connected(world)
    message = Message("Result", {}, (os.urandom(3 << 20),))
    arrived = deliver_bulk(server, world.client, message, client)
    assert (arrived.message, arrived.source) == (message, "server")


def test_bulk_is_held_back_until_the_peer_takes_it_and_then_all_of_it_arrives_once(world: World) -> None:
    server, client = connected(world)
    deliver_bulk(client, "server", Message("First"), server)
    sent = 0
    while client.send_bulk("server", Message("Part", {"n": sent}, (bytes(1 << 20),))):
        client.poll(0)
        sent += 1
        assert sent < 100, "no window holds it back"
    assert client.stats()["server"].in_flight_bytes > 0
    numbers: list[int] = []

    def step(events: list[LinkEvent]) -> bool:
        nonlocal sent
        numbers[:] = [event.message.body["n"] for event in received(events)]
        if sent < 60 and client.send_bulk("server", Message("Part", {"n": sent}, (bytes(1 << 20),))):
            sent += 1
        return len(numbers) >= 60

    until(step, server, client)
    assert sorted(numbers) == list(range(60))
    until(lambda _: client.stats()["server"].in_flight_bytes == 0, client, server)


def test_control_is_handed_out_before_bulk(world: World) -> None:
    server, client = connected(world)
    deliver_bulk(client, "server", Message("First"), server)
    for number in range(2):
        until(lambda _, n=number: client.send_bulk("server", Message("Part", {"n": n}, (bytes(1 << 20),))), client)
    assert client.send("server", Message("Heartbeat"))
    events: list[Received] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(events) < 3:
        assert time.monotonic() < deadline
        batch = [event.message.kind for event in received(server.poll(0.01))]
        assert "Heartbeat" not in batch or batch[0] == "Heartbeat"
        events += [Received("", b"", Message(kind)) for kind in batch]


def test_done_of_bulk_is_called_once_the_buffers_are_free(world: World) -> None:
    server, client = connected(world)
    deliver_bulk(client, "server", Message("First"), server)
    done: list[int] = []
    for number in range(3):
        message = Message("Part", {"n": number}, (bytearray(1 << 20),))
        until(lambda _, m=message, n=number: client.send_bulk("server", m, partial(done.append, n)), client, server)
    until(lambda _: len(done) == 3, client, server)
    client.poll(0)
    assert sorted(done) == [0, 1, 2]


def test_bulk_goes_on_after_the_server_was_restarted(world: World) -> None:
    server, client = connected(world)
    deliver_bulk(client, "server", Message("Before", {}, (bytes(1 << 20),)), server)
    while client.send_bulk("server", Message("Lost", {}, (bytes(1 << 20),))):
        pass
    server.close()
    until(has(Disconnected), client)
    assert not client.send_bulk("server", Message("Lost"))
    server = world.server()
    until(has(Connected("server")), client, server)
    for number in range(20):  # more than a window
        until(
            lambda _, n=number: client.send_bulk("server", Message("After", {"n": n}, (bytes(1 << 20),))),
            client,
            server,
        )


def test_size_of_bulk_messages_is_within_its_bounds_and_unknown_peers_are_not_probed(world: World) -> None:
    _, client = connected(world)
    assert 64 << 10 <= client.bulk_bytes("server") <= 4 << 20
    assert 64 << 10 <= client.bulk_bytes("nobody") <= 4 << 20
    assert not client.probe("nobody")
    assert not client.send_bulk("nobody", Message("Part"), lambda: pytest.fail("was not sent"))


def test_messages_of_another_run_are_dropped_and_counted(world: World) -> None:
    server, stranger = world.server(), world.dialler(OTHER_RUN)
    world.connect(stranger)
    until(has(Connected("server")), stranger, server)
    assert stranger.send("server", Message("Hello"))
    events = until(has(Dropped), server, stranger)
    assert not received(events)
    assert any(
        isinstance(event, Dropped) and event.source == world.client and "run" in event.reason for event in events
    )
    assert server.stats()[world.client].dropped >= 1
    assert not server.send(world.client, Message("Hello"))  # no way back is learnt from what is dropped


def test_messages_over_the_limits_are_refused_at_the_sender(world: World) -> None:
    _, client = connected(world)
    with pytest.raises(WireError, match="buffer of"):
        client.send("server", Message("Part", {}, (bytes(MAX_BUFFER_BYTES + 1),)))


def test_close_can_be_repeated_and_ends_everything(world: World) -> None:
    server, client = connected(world)
    client.close()
    client.close()
    assert not client.send("server", Message("Hello"))
    server.close()


# ---- over ZeroMQ only

RawDealer: TypeAlias = Callable[[Identity | None], zmq.Socket[bytes]]


@pytest.fixture
def tcp() -> Iterator[TcpWorld]:
    made = TcpWorld()
    yield made
    made.close()


@pytest.fixture
def raw() -> Iterator[RawDealer]:
    """Makes plain DEALER sockets of libzmq, with the keys of someone or without any."""
    context = zmq.Context()
    made: list[zmq.Socket[bytes]] = []

    def make(who: Identity | None) -> zmq.Socket[bytes]:
        dealer = context.socket(zmq.DEALER)
        made.append(dealer)
        if who is not None:
            dealer.curve_serverkey = SERVER.curve_public
            dealer.curve_publickey, dealer.curve_secretkey = pair(who)
        return dealer

    yield make
    context.destroy(linger=0)


def test_our_x25519_keys_are_curve_keys() -> None:
    keys = RunKeys.create()
    for public, secret in (pair(CLIENT), (keys.curve_public, keys.curve_secret)):
        assert z85.decode(zmq.curve_public(z85.encode(secret))) == public


def test_unknown_key_is_denied_with_a_reason_on_both_sides_and_may_be_admitted_later() -> None:
    known: dict[bytes, str] = {}
    server = ZmqLink(RUN, bind="127.0.0.1:0", key=pair(SERVER), admit=known.get)
    client = ZmqLink(RUN, key=pair(STRANGER))
    try:
        client.connect("server", server.address, SERVER.curve_public)
        events = until(has(Dropped, Disconnected), client, server)
        assert Disconnected("server", "refused: key not admitted") in events
        dropped = next(event for event in events if isinstance(event, Dropped))
        assert dropped.source == ""
        assert STRANGER.curve_public.hex()[:16] in dropped.reason
        assert server.stats()[""].dropped >= 1
        assert not client.send("server", Message("Hello"))
        known[STRANGER.curve_public] = "friend"
        until(has(Connected("server")), client, server)
        assert deliver(client, "server", Message("Hello"), server).source == "friend"
    finally:
        client.close()
        server.close()


def test_nobody_is_admitted_without_an_admission_rule() -> None:
    server = ZmqLink(RUN, bind="127.0.0.1:0", key=pair(SERVER))
    client = ZmqLink(RUN, key=pair(CLIENT))
    try:
        client.connect("server", server.address, SERVER.curve_public)
        events = until(has(Dropped, Disconnected), client, server)
        assert not has(Connected)(events)
    finally:
        client.close()
        server.close()


def test_server_with_another_key_is_not_believed(tcp: TcpWorld) -> None:
    server, client = tcp.server(), tcp.dialler()
    client.connect("server", tcp.address, STRANGER.curve_public)
    events = until(has(Disconnected), client, server)
    assert not has(Connected)(events)
    assert "another key" in next(event for event in events if isinstance(event, Disconnected)).reason


def test_invite_key_opens_one_connection_beside_the_links_own(tcp: TcpWorld) -> None:
    server = tcp.server()
    client = tcp.keep(ZmqLink(RUN, key=pair(STRANGER)))
    client.connect("server", tcp.address, SERVER.curve_public, client_key=pair(CLIENT))
    until(has(Connected("server")), client, server)
    assert deliver(client, "server", Message("Enroll"), server).source == "client"
    client.connect("server", tcp.address, SERVER.curve_public)
    until(has(Disconnected), client, server)  # its own key is not admitted


@pytest.mark.parametrize("mechanism", ["null", "plain", "unknown key", "garbage"])
def test_raw_sockets_without_an_admitted_key_get_nothing_in(tcp: TcpWorld, raw: RawDealer, mechanism: str) -> None:
    server, client = connected(tcp)
    assert isinstance(server, ZmqLink)
    frames = [b"\x80", b"junk"]
    if mechanism == "garbage":
        plain = socket.create_connection(("127.0.0.1", server.port))
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(4096))
    else:
        dealer = raw(STRANGER if mechanism == "unknown key" else None)
        if mechanism == "plain":
            dealer.plain_username, dealer.plain_password = b"client", b"client"
        dealer.connect(f"tcp://{tcp.address}")
        for _ in range(10):
            dealer.send_multipart(frames)
    sources = []
    for number in range(20):  # the honest connection goes on beside it
        assert client.send("server", Message("N", {"n": number}))
        events = until(has(Received), server, client)
        sources += [event.source for event in events if isinstance(event, Received | Dropped)]
    assert set(sources) <= {"client", ""}
    assert sources.count("client") == 20
    if mechanism == "garbage":
        plain.close()


def test_claimed_routing_id_or_name_changes_nothing(tcp: TcpWorld, raw: RawDealer) -> None:
    known = {CLIENT.curve_public: "client", STRANGER.curve_public: "stranger"}
    server = tcp.keep(ZmqLink(RUN, bind="127.0.0.1:0", key=pair(SERVER), admit=known.get))
    assert isinstance(server, ZmqLink)
    tcp.address = server.address
    client = tcp.dialler()
    tcp.connect(client)
    until(has(Connected("server")), client, server)
    route = deliver(client, "server", Message("Hello"), server).connection
    for claim in (b"client", route[2:7], b"x" * 255):
        liar = raw(STRANGER)
        liar.routing_id = claim
        liar.connect(f"tcp://{tcp.address}")
        liar.send_multipart([b"junk"])
    # The one that claims the route in use is not even heard; all others are seen as who they are.
    events = until(lambda events: sum(isinstance(event, Dropped) for event in events) >= 2, server, client)
    assert {event.source for event in events if isinstance(event, Dropped)} == {"stranger"}
    assert server.send("client", Message("Back"))
    assert received(until(has(Received), client, server))[0].message.kind == "Back"


def test_long_routing_ids_can_be_answered(tcp: TcpWorld, raw: RawDealer) -> None:
    server = tcp.server()
    dealer = raw(CLIENT)
    dealer.routing_id = b"x" * 255
    dealer.connect(f"tcp://{tcp.address}")
    dealer.send_multipart(encode(Message("Hello"), RUN))
    arrived = received(until(has(Received), server))[0]
    assert server.reply(arrived.connection, Message("Reply"))
    until(lambda _: bool(dealer.poll(0)), server)
    assert dealer.recv_multipart() == encode(Message("Reply"), RUN)
    assert server.stats()["client"].messages_sent == 1


@pytest.mark.parametrize("frames", [[b""], [b"junk"], [b"\x80"], [b"\x80"] * 1000, [bytes(2 << 20)]])
def test_bad_frames_of_an_admitted_peer_are_dropped_and_counted(
    tcp: TcpWorld, raw: RawDealer, frames: list[bytes]
) -> None:
    server = tcp.server()
    dealer = raw(CLIENT)
    dealer.connect(f"tcp://{tcp.address}")
    dealer.send_multipart(frames)
    events = until(has(Dropped), server)
    assert [type(event) for event in events] == [Dropped]
    assert server.stats()["client"].dropped == 1


def test_frames_over_the_limit_end_the_connection_before_they_are_read(tcp: TcpWorld, raw: RawDealer) -> None:
    server = tcp.server()
    dealer = raw(CLIENT)
    dealer.linger = 0
    monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    dealer.connect(f"tcp://{tcp.address}")
    dealer.send(bytes(MAX_BUFFER_BYTES + 2048), copy=False)
    events = until(lambda _: bool(monitor.poll(0)), server)
    assert not received(events)
    dealer.disable_monitor()
    monitor.close()


def test_one_poll_returns_a_bounded_number_of_events_from_all_senders(tcp: TcpWorld) -> None:
    server = tcp.server()
    diallers = [tcp.dialler() for _ in range(6)]
    for link in diallers:
        tcp.connect(link)
        until(has(Connected("server")), link, server)
    deadline = time.monotonic() + DEADLINE_S
    for link in diallers:
        for number in range(100):
            # A full queue is emptied by libzmq's own thread, in its own time.
            while not link.send("server", Message("N", {"n": number})):
                assert time.monotonic() < deadline
    total = 0
    while total < 360:
        assert time.monotonic() < deadline
        events = server.poll(1.0)
        assert len(events) <= 256
        total += len(events)


def test_taken_port_names_the_address_and_the_way_out(tcp: TcpWorld) -> None:
    tcp.server()
    with pytest.raises(AddressInUseError, match=tcp.address) as caught:
        ZmqLink(RUN, bind=tcp.address, key=pair(SERVER), admit=admit)
    assert "port" in caught.value.hint


def test_living_ipc_path_is_not_taken_over_but_a_dead_one_is(folder: Path) -> None:
    world = IpcWorld(folder)
    path = folder / "link"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    world.server()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(AddressInUseError, match="taken"):
        ZmqLink(RUN, bind=world.address)
    world.close()


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":80", "host:99999", "tcp://host:80", "ipc://relative", "ipc://@abstract", "a b:80", "inproc://x",
     "ipc:///" + "x" * 200],
)  # fmt: skip
def test_addresses_that_cannot_be_used_are_refused(address: str) -> None:
    link = ZmqLink(RUN, key=pair(CLIENT))
    with pytest.raises(ConfigError, match="is not an address"):
        link.connect("server", address, SERVER.curve_public)
    link.close()
    with pytest.raises(ConfigError, match="is not an address"):
        ZmqLink(RUN, bind=address, key=pair(CLIENT))


def test_tcp_without_encryption_is_impossible() -> None:
    with pytest.raises(ConfigError, match="without encryption"):
        ZmqLink(RUN, bind="127.0.0.1:0", admit=admit)
    link = ZmqLink(RUN)
    with pytest.raises(ConfigError, match="without encryption"):
        link.connect("server", "127.0.0.1:9", SERVER.curve_public)
    link.close()
    link = ZmqLink(RUN, key=pair(CLIENT))
    with pytest.raises(ConfigError, match="without encryption"):
        link.connect("server", "127.0.0.1:9", b"")
    link.close()


def test_addresses_of_other_hosts_and_wrong_run_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        ZmqLink(RUN, bind="192.0.2.1:0", key=pair(SERVER))
    with pytest.raises(ConfigError, match="5 bytes, not 8"):
        ZmqLink(b"short")


def test_ipv6_loopback_works_where_the_host_has_it() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this host has no IPv6")
    world = TcpWorld()
    world.address = "[::1]:0"
    server, client = connected(world)
    assert deliver(client, "server", Message("Hello"), server).source == "client"
    world.close()


def test_close_leaves_no_sockets_and_no_threads(folder: Path) -> None:
    def cycle() -> None:
        worlds: list[TcpWorld | IpcWorld] = [TcpWorld(), IpcWorld(folder)]
        for world in worlds:
            server, client = connected(world)
            deliver(client, "server", Message("Part", {}, (bytes(1 << 20),)), server)
            client.connect("absent", world.address.replace("link", "absent"), SERVER.curve_public)
            world.close()

    def count() -> tuple[int, int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), threading.active_count()

    cycle()  # pyzmq starts the thread that takes buffers back, which stays
    before = count()
    cycle()
    deadline = time.monotonic() + DEADLINE_S
    while count() > before:  # the system takes a moment to forget a thread that has ended
        assert time.monotonic() < deadline, f"{before} became {count()}"
    assert not any(folder.iterdir())


def test_queued_messages_leave_within_the_linger_time(tcp: TcpWorld) -> None:
    server, client = connected(tcp)
    assert client.send("server", Message("Leave"))
    client.close(linger_s=5.0)
    assert received(until(has(Received), server))[0].message.kind == "Leave"


def test_hanging_up_at_any_moment_leaves_nothing_behind() -> None:
    # A monitor that went before its socket once blocked libzmq's own thread, and with it the whole peer.
    us, them = Identity.create(), Identity.create()
    link = ZmqLink(bytes(8), bind="127.0.0.1:0", key=(us.curve_public, us.curve_secret), admit=lambda key: "them")
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(240):
        other = ZmqLink(
            bytes(8),
            bind="127.0.0.1:0",
            key=(them.curve_public, them.curve_secret),
            admit=(lambda key: "us") if turn % 2 else (lambda key: None),
        )
        link.connect("them", other.address, them.curve_public)
        for _ in range(turn % 7):
            link.poll(0.001)
            other.poll(0.001)
        if turn % 3:
            other.close()
        link.disconnect("them")
        other.close()
    deadline = time.monotonic() + 20
    while len(os.listdir("/proc/self/fd")) > before + 8 and time.monotonic() < deadline:
        link.poll(0.01)
    left = len(os.listdir("/proc/self/fd")) - before
    link.close()
    assert left <= 8, f"{left} files are still open"


@pytest.mark.parametrize(
    ("bind", "words", "hint"),
    [
        ("203.0.113.9:0", "it is no address of this host", "0.0.0.0 stands"),
        ("no-such-host.invalid:0", "no address", ""),
    ],
)
def test_an_address_of_another_host_cannot_be_listened_at(bind: str, words: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        ZmqLink(RUN, bind=bind, key=pair(SERVER), admit=admit)
    assert hint in caught.value.hint
