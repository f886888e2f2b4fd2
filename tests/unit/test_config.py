"""Run specs: what is accepted, and that every refusal names the option, the value and what is allowed."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from wantrain.addresses import advertised_address, split_address
from wantrain.config import RunSpec, key_path, store_path, template
from wantrain.errors import ConfigError
from wantrain.optimizers.method import METHODS
from wantrain.optimizers.stream import Wire

RUN = f'[run]\nid = "00112233445566ff"\nowner = "{"ab" * 32}"\n'


def test_smallest_spec_has_the_documented_defaults() -> None:
    spec = RunSpec.parse(RUN, "runs/tiny.toml")
    assert (spec.name, spec.run, spec.owner) == ("tiny", bytes.fromhex("00112233445566ff"), b"\xab" * 32)
    assert (spec.method.name, spec.wiring.codec) == ("diloco", "int8")
    assert (spec.coordinator.bind, spec.coordinator.advertise) == ("0.0.0.0:7700", "")
    assert spec.sync.model_dump() == {
        "quorum": 0.5,
        "grace_floor_s": 2.0,
        "grace_ceiling_s": 30.0,
        "deadline_floor_s": 10.0,
        "deadline_ceiling_s": 600.0,
        "wait_ceiling_s": 120.0,
    }
    assert spec.liveness.model_dump() == {"heartbeat_s": 1.0, "suspect_floor_s": 5.0, "suspect_ceiling_s": 30.0}
    assert spec.log.model_dump() == {"keep_mb": 512, "keep_updates": 256}
    assert [stream.codec for stream in spec.streams] == ["int8"]


@pytest.mark.parametrize("method", METHODS)
def test_template_round_trips_with_one_comment_before_each_option(method: str) -> None:
    text = template('a "run"', "00112233445566ff", "ab" * 32, method=method, codec="bf16", advertise="a.example:1")
    spec = RunSpec.parse(text)
    assert (spec.name, spec.method.name, spec.wire.codec) == ('a "run"', method, "bf16")
    assert spec.streams == METHODS[method].build(method, {}, Wire("bf16"))
    lines = text.splitlines()
    options = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert options
    for i in options:
        assert lines[i - 1].startswith("# "), lines[i]
        assert "default" in lines[i - 1], lines[i]


def test_template_defaults_are_those_of_an_empty_spec() -> None:
    spec = RunSpec.parse(template("run", "00112233445566ff", "ab" * 32))
    assert spec.digest == RunSpec.parse(RUN).digest
    assert spec.sync == RunSpec.parse(RUN).sync


def test_to_toml_is_complete_and_canonical() -> None:
    text = RUN + '[method]\nname="diloco"\nouter_lr=1e-5\nnesterov=false\n[sync]\nquorum=1\n'
    spec = RunSpec.parse(text, "x.toml")
    again = RunSpec.parse(spec.to_toml(), "y.toml")
    assert again == spec
    assert again.to_toml() == spec.to_toml()
    assert "# " not in spec.to_toml()


@pytest.mark.parametrize("name", ['quo"te\\back', "Zürich 東京 ✓"])
def test_any_printable_name_survives_toml(name: str) -> None:
    assert RunSpec.parse(template(name, "00112233445566ff", "ab" * 32)).name == name


def test_digest_covers_what_peers_must_agree_on_and_nothing_else() -> None:
    digest = RunSpec.parse(RUN).digest
    assert len(digest) == 32
    same = [
        "[sync]\nquorum=1",
        '[coordinator]\nbind="0.0.0.0:1"',
        "[method]\nouter_lr=0.7\nevery=100",
        "[log]\nkeep_mb=1",
    ]
    differs = ['[wire]\ncodec="fp32"', "[method]\nevery=99", '[method]\nname="ddp"']
    assert {RunSpec.parse(RUN + text).digest for text in same} == {digest}
    others = {RunSpec.parse(RUN + text).digest for text in differs} | {RunSpec.parse(RUN.replace("ff", "00")).digest}
    assert len(others | {digest}) == 5


@pytest.mark.parametrize(
    ("text", "said", "hinted"),
    [
        ("[snyc]", ["snyc"], ["sync", "wire", "liveness"]),
        ("[sync]\nquorun = 1", ["[sync]", "quorun"], ["quorum", "wait_ceiling_s"]),
        ("[sync]\nquorum = 2", ["[sync]", "quorum", "2", "above 0, at most 1"], []),
        ("[sync]\nquorum = 0", ["quorum is 0"], []),
        ("[sync]\nquorum = true", ["quorum is True", "number"], []),
        ("[sync]\nquorum = nan", ["quorum is nan"], []),
        ('[sync]\nquorum = "1"', ["quorum is '1'", "number"], []),
        ("[sync]\ngrace_floor_s = 31", ["grace_floor_s is 31", "grace_ceiling_s = 30"], []),
        ("[sync]\ndeadline_ceiling_s = 9", ["deadline_floor_s is 10", "deadline_ceiling_s = 9"], []),
        ("[liveness]\nsuspect_ceiling_s = 2", ["suspect_floor_s is 5", "suspect_ceiling_s = 2"], []),
        ("[liveness]\nheartbeat_s = 5", ["suspect_floor_s", "heartbeat_s = 5"], []),
        ("[liveness]\nheartbeat_s = 0", ["heartbeat_s is 0", "above 0"], []),
        ('[wire]\ncodec = "int9"', ["codec is 'int9'", "auto", "fp32", "bf16", "int8"], []),
        ('[wire]\ncodec = "auto"\ndown = "auto"', ["down is 'auto'", "fp32"], []),
        ('[wire]\ncodec = "auto"\ntopology = "ring"', ["topology is 'ring' with codec 'auto'", "'direct'"], []),
        ('[coordinator]\nbind = "host"', ["bind", "'host'", "host:port"], []),
        ('[coordinator]\nadvertise = "host:0"', ["advertise", "'host:0'", "1 to 65535"], []),
        ("[log]\nkeep_mb = 1.5", ["keep_mb is 1.5", "whole number"], []),
        ('[method]\nname = "dilco"', ["[method]", "dilco"], ["diloco"]),
        ("[method]\nevry = 1", ["[method]", "evry"], ["every"]),
        ("[method]\nevery = 0", ["[method]", "every", "0"], []),
        ("[method]\nevery = [1]", ["[method]", "every is [1]"], []),
        ("[method]\noptions = 1", ["[method]", "'options'"], []),
        ("[wire]\n[wire]", ["not valid TOML", "line 5"], []),
    ],
)
def test_refusal_names_option_value_and_what_is_allowed(text: str, said: list[str], hinted: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        RunSpec.parse(RUN + text)
    assert [part for part in ["run.toml", *said] if part not in caught.value.message] == []
    assert [part for part in hinted if part not in caught.value.hint] == []
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "run = 3", "[run]", RUN.replace("00112233445566ff", "0"), RUN.replace("ab", "zz"), "[" * 9999],
)
def test_spec_without_a_usable_run_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="run"):
        RunSpec.parse(text)


def test_each_sync_may_choose_its_codec_and_8_bits_come_back() -> None:
    wire = RunSpec.parse(RUN + '[wire]\ncodec = "auto"').wiring
    assert (wire.codec, wire.down) == ("auto", "int8")
    assert RunSpec.parse(RUN + '[wire]\ncodec = "auto"\ndown = "bf16"').streams[0].codecs == ("auto", "bf16")


def test_missing_file_points_at_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found") as caught:
        RunSpec.load(tmp_path / "run.toml")
    assert "wantrain init" in caught.value.hint


def test_unreadable_files_are_config_errors(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            RunSpec.load(path)


def test_load_takes_the_name_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "english.toml").write_text(RUN)
    assert RunSpec.load(tmp_path / "english.toml").name == "english"
    assert key_path(tmp_path / "english.toml") == tmp_path / "english.key"
    assert store_path(tmp_path / "english.toml") == tmp_path / "english.db"


def test_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunSpec.parse(RUN).sync.quorum = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.example:7700", ("a.example", 7700)),
        ("[2001:db8::5]:1", ("2001:db8::5", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
    ],
)
def test_addresses_split(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a",
        "a:",
        "a:0",
        "a:65536",
        "a:-1",
        "a:x",
        "a:²",
        "a b:1",
        "2001:db8::5:1",
        "[]:1",
        "tcp://a:1",
        "a:1\n",
    ],
)
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not an address"):
        split_address(text)


def test_advertised_address_prefers_what_was_said() -> None:
    assert advertised_address("0.0.0.0:1", "a.example:2") == "a.example:2"
    assert advertised_address("10.1.2.3:7") == "10.1.2.3:7"
    assert advertised_address("[::1]:7") == "[::1]:7"
    with pytest.raises(ConfigError, match="port of 127.0.0.1:0"):
        advertised_address("127.0.0.1:0")


def test_advertised_address_of_every_interface_is_the_primary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket:
        def __init__(self, family: int, kind: int) -> None:
            assert kind == socket.SOCK_DGRAM, "connecting a datagram socket sends nothing"

        def __enter__(self) -> "Socket":
            return self

        def __exit__(self, *_: object) -> None: ...

        def connect(self, address: tuple[str, int]) -> None: ...

        def getsockname(self) -> tuple[str, int]:
            return ("10.9.8.7", 5)

    monkeypatch.setattr(socket, "socket", Socket)
    assert advertised_address("0.0.0.0:7700") == "10.9.8.7:7700"

    def no_route(self: Socket, address: tuple[str, int]) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(Socket, "connect", no_route)
    with pytest.raises(ConfigError, match="no primary address") as caught:
        advertised_address("0.0.0.0:7700")
    assert "advertise" in caught.value.hint


def test_reading_a_spec_does_not_import_torch() -> None:
    code = "import sys, wantrain.config as c; c.RunSpec.parse(sys.argv[1]).digest; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, RUN], cwd=root, check=False).returncode == 0
