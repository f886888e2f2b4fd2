"""The command line: what each command passes on, prints and exits with, and that help costs no import of torch."""

import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from wantrain.cli import status as status_command
from wantrain.cli.events import EventPrinter
from wantrain.cli.main import COMMANDS, main
from wantrain.cli.options import Duration
from wantrain.config import RunSpec
from wantrain.errors import ConfigError, RefusedError, StoreError, TrainerError, UnreachableError, WantrainError
from wantrain.peers.monitor import Watch
from wantrain.peers.own_states import Wishes
from wantrain.peers.store import PeerRow, Store
from wantrain.transport.auth import Invite, RunKeys

ROOT = Path(__file__).parents[2]
INVITE = str(Invite.issue(RunKeys.create(), bytes(8), "127.0.0.1", 7700, 2**32))

DOCUMENT = {
    "run": {"id": "00112233445566ff", "name": "eng\x1b[31mlish", "method": "diloco", "codec": "int8", "protocol": 1},
    "coordinator": {"address": "10.0.0.1:7700", "epoch": 3, "uptime_s": 90.0},
    "log": {"head": 12, "chain": "c" * 64},
    "view": {"number": 5, "members": ["aa", "bb"]},
    "replica_spread": 0.01234,
    "peers": [
        {
            "peer": "aa" * 8,
            "name": "berlin",
            "state": "member",
            "log_number": 12,
            "trainer": "training",
            "last_seen_s": 0.4,
            "waiting": "",
            "late": "param#13 waits for it for 1.5 s",
            "stats": {"step": 1200, "loss": 2.5, "tokens_per_s": 1234.5, "bytes_sent": 4_200_000},
        },
        {
            "peer": "bb" * 8,
            "name": "tokyo",
            "state": "lost",
            "waiting": "waits for berlin",
            "late": "not seen",
            "stats": {},
        },
    ],
    "syncs": [
        {
            "stream": "param",
            "index": 13,
            "attempt": 2,
            "phase": "gather",
            "ready": ["berlin"],
            "waiting_for": ["tokyo"],
            "reason": "tokyo 0.8 s late",
            "age_s": 1.5,
        }
    ],
    "data": [
        {
            "name": "words",
            "length": 60_000,
            "seed": 0,
            "epochs": 3,
            "epoch": 1,
            "leased": 0.713,
            "confirmed": 0.68,
            "leases": [{"peer": "berlin", "samples": 1980}],
            "returned": 17,
        }
    ],
    "commits": [
        {
            "number": 12,
            "stream": "param",
            "index": 12,
            "attempt": 1,
            "contributors": ["berlin", "tokyo"],
            "digest": "d" * 64,
            "age_s": 200.0,
            "gather_s": 0.5,
            "move_s": 0.25,
            "predicted_s": 0.2,
            "topology": "direct",
            "codec": "rms0.35+zstd",
        }
    ],
    "reason": "1 of 2 ready",
}


def wantrain(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    assert wantrain("init", path, "--advertise", "train.example.org:7700").exit_code == 0
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a module with the given contents in place of a real one, for imports of either form."""

    def put(name: str, **contents: object) -> None:
        package, _, attribute = name.rpartition(".")
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(f"{package}.{attribute}", module, raising=False)

    return put


# ---- help


def test_help_lists_every_command_without_importing_torch_or_sockets() -> None:
    code = "import sys; from wantrain.cli.main import main; main(['--help'], standalone_mode=False); "
    code += "sys.exit(bool({'torch', 'zmq', 'sqlite3', 'pydantic'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert [name for name in COMMANDS if f"\n  {name} " not in process.stdout] == []


def test_package_runs_as_a_module() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "wantrain", "init", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0
    assert process.stdout.startswith("Usage: wantrain init")


BENCHES = ("bench allreduce", "bench codecs", "bench outer", "bench trainer", "bench coordinator")
CHECKPOINTS = ("checkpoint ls", "checkpoint verify", "checkpoint export", "checkpoint save")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bench codecs --elements 0 --json", "--elements"),
        ("status --json --surplus", "--surplus"),
        ("init a b --json", "b"),
    ],
)
def test_words_that_a_command_does_not_take_are_errors_as_json_too(words: str, said: str) -> None:
    result = wantrain(*words.split())
    error = json.loads(result.output)
    assert said in error["error"]
    assert error["hint"].endswith(f" {words.partition(' -')[0].removesuffix(' a b')} --help")
    assert (result.exit_code, error["code"]) == (2, 2)


def test_json_of_the_training_command_is_its_own() -> None:
    result = wantrain("peer", "--surplus", "--", "python", "train.py", "--json")
    assert "No such option" in result.output
    assert "{" not in result.output


def test_a_run_may_leave_the_codec_to_each_sync(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    assert wantrain("init", path, "--codec", "auto").exit_code == 0
    assert RunSpec.load(path).streams[0].codecs == ("auto", "int8")
    refused = wantrain("init", tmp_path / "ring.toml", "--codec", "auto", "--topology", "ring")
    assert "topology is 'ring' with codec 'auto'" in refused.output
    assert refused.exit_code == 2


def test_a_codec_that_only_runs_know_is_not_measured() -> None:
    result = wantrain("bench", "codecs", "--codec", "auto")
    assert "each sync chooses its own" in result.output
    assert "next: name one, such as int8, rms0.35+zstd, rms0.75+huffman" in result.output
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "name", [*(name for name in COMMANDS if name not in ("bench", "checkpoint")), *BENCHES, *CHECKPOINTS]
)
def test_every_command_has_help_with_an_example_and_json(name: str) -> None:
    result = wantrain(*name.split(), "--help")
    assert result.exit_code == 0
    examples = result.output.partition("Example")[2]
    assert f"wantrain {name}" in examples
    assert "--json" in result.output


def test_version_is_that_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wantrain.cli.main.metadata.version", lambda name: f"{name} is 1.2")
    assert wantrain("--version").output == "wantrain wantrain is 1.2\n"


def test_version_of_a_bare_checkout_is_not_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("wantrain.cli.main.metadata.version", version)
    result = wantrain("--version")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "install" in result.stderr


def test_unknown_command_is_a_usage_error() -> None:
    assert wantrain("innit").exit_code == 2


# ---- errors


@pytest.mark.parametrize("kind", [ConfigError, RefusedError, UnreachableError, StoreError, TrainerError, WantrainError])
def test_errors_are_said_with_next_step_and_their_exit_code(
    fake: Callable[..., None], kind: type[WantrainError]
) -> None:
    def serve(*_: object, **__: object) -> None:
        raise kind("no\x1b[2J room", hint="make room")

    fake("wantrain.peers.coordinator_daemon", serve=serve)
    result = wantrain("coordinator", "run.toml")
    assert result.exit_code == kind.exit_code
    assert result.stderr == "error: no·[2J room\nnext: make room\n"
    assert result.stdout == ""
    result = wantrain("coordinator", "run.toml", "--json")
    assert result.exit_code == kind.exit_code
    told = {"error": "no\x1b[2J room", "hint": "make room", "code": kind.exit_code, "kind": kind.__name__}
    assert json.loads(result.stdout) == told


def test_ctrl_c_exits_with_130(fake: Callable[..., None]) -> None:
    def serve(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    fake("wantrain.peers.coordinator_daemon", serve=serve)
    assert wantrain("coordinator", "run.toml").exit_code == 130


def test_unknown_option_in_run_toml_names_the_nearest(run_file: Path) -> None:
    run_file.write_text(run_file.read_text().replace("quorum =", "quorun ="))
    result = wantrain("invite", run_file)
    assert result.exit_code == 2
    assert "[sync] unknown option 'quorun'" in result.stderr
    assert "next: did you mean 'quorum'?" in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("90s", 90.0), ("15m", 900.0), ("24h", 86400.0), ("7d", 604800.0), ("1.5h", 5400.0)],
)
def test_durations_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "-1h", "0s", "1w", "1 h", "1e3s", "99999d", "nans", "²h"])
def test_bad_durations_are_config_errors_in_words_and_json(text: str) -> None:
    result = wantrain("invite", "--json", "--expires", text)
    assert result.exit_code == 2
    error = json.loads(result.stdout)
    assert f"--expires is {text!r}" in error["error"]
    assert "24h" in error["hint"]


# ---- init and invite


@pytest.mark.parametrize("ending", ["key", "db", "lock", "address"])
def test_init_refuses_the_name_of_a_file_that_will_lie_beside_it(tmp_path: Path, ending: str) -> None:
    result = wantrain("init", tmp_path / f"foo.{ending}")
    assert result.exit_code == 2
    assert "foo.toml" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_init_that_fails_leaves_the_former_run_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "run.toml"
    assert wantrain("init", path).exit_code == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "write_text", full)
    result = wantrain("init", path, "--force")
    assert (result.exit_code, "No space left" in result.stderr) == (2, True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_init_that_cannot_replace_the_key_leaves_the_run_file_as_it_was(tmp_path: Path) -> None:
    path, key = tmp_path / "run.toml", tmp_path / "run.key"
    assert wantrain("init", path).exit_code == 0
    key.unlink()
    key.mkdir()
    before = path.read_bytes()
    result = wantrain("init", path, "--force")
    assert (result.exit_code, "run.key is a directory" in result.stderr) == (2, True)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.key", "run.toml"]


def test_init_writes_a_spec_and_the_key_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "english.toml"
    result = wantrain("init", path, "--method", "ddp", "--codec", "bf16", "--port", 7001)
    assert result.exit_code == 0
    assert result.output.endswith(f"next: wantrain coordinator {path}\n")
    spec = RunSpec.load(path)
    assert (spec.name, spec.method.name, spec.wire.codec) == ("english", "ddp", "bf16")
    assert (spec.coordinator.bind, spec.coordinator.advertise) == ("0.0.0.0:7001", "")
    assert RunKeys.load(tmp_path / "english.key").owner_public == spec.owner
    assert (tmp_path / "english.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "bind"),
    [
        ((), "0.0.0.0:7700"),
        (("--advertise", "train.example.org:7711"), "0.0.0.0:7711"),
        (("--advertise", "train.example.org:7711", "--port", "7700"), "0.0.0.0:7700"),  # forwarded by a router
    ],
)
def test_a_new_run_listens_where_its_invites_lead(options: tuple[str, ...], bind: str, tmp_path: Path) -> None:
    assert wantrain("init", tmp_path / "run.toml", *options).exit_code == 0
    assert RunSpec.load(tmp_path / "run.toml").coordinator.bind == bind


def test_init_as_json_names_run_and_files(tmp_path: Path) -> None:
    result = json.loads(wantrain("init", tmp_path / "run.toml", "--json").stdout)
    assert result == {
        "run": RunSpec.load(tmp_path / "run.toml").about.id,
        "file": str(tmp_path / "run.toml"),
        "key": str(tmp_path / "run.key"),
    }


@pytest.mark.parametrize("kept", ["run.toml", "run.key"])
def test_init_overwrites_nothing_without_force(run_file: Path, kept: str) -> None:
    before = {path: path.read_bytes() for path in run_file.parent.iterdir()}
    next(path for path in before if path.name != kept).unlink()
    result = wantrain("init", run_file)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (run_file.parent / kept).read_bytes() == before[run_file.parent / kept]
    assert wantrain("init", run_file, "--force").exit_code == 0
    assert RunSpec.load(run_file).owner == RunKeys.load(run_file.with_suffix(".key")).owner_public
    assert (run_file.parent / kept).read_bytes() != before[run_file.parent / kept]


def test_init_never_replaces_a_run_that_has_a_log(run_file: Path) -> None:
    Store(run_file.with_suffix(".db")).close()
    result = wantrain("init", run_file, "--force")
    assert result.exit_code == 2
    assert "holds the log of a run" in result.stderr


@pytest.mark.parametrize("bad", [("--method", "dilco"), ("--codec", "int9"), ("--advertise", "host")])
def test_init_with_a_bad_value_writes_nothing(tmp_path: Path, bad: tuple[str, str]) -> None:
    result = wantrain("init", tmp_path / "run.toml", *bad)
    assert result.exit_code == 2
    assert bad[1] in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_init_in_a_missing_directory_is_a_config_error(tmp_path: Path) -> None:
    assert wantrain("init", tmp_path / "no" / "run.toml").exit_code == 2


def test_invite_prints_only_the_invite_and_records_it(run_file: Path) -> None:
    result = wantrain("invite", run_file, "--uses", 3, "--expires", "90s")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    invite, spec = Invite.parse(result.stdout.strip()), RunSpec.load(run_file)
    invite.check(spec.run, spec.owner, int(time.time()))
    assert (invite.host, invite.port, invite.uses) == ("train.example.org", 7700, 3)
    assert 0 < invite.expires_unix - time.time() <= 90
    with Store(run_file.with_suffix(".db")) as store:
        (row,) = store.invites()
    assert (row.ident, row.curve_key) == (invite.ident, invite.curve_key_pair()[0])
    assert (row.expires_unix, row.uses, row.used) == (invite.expires_unix, 3, 0)


def test_invite_as_json_with_another_address(run_file: Path) -> None:
    result = json.loads(wantrain("invite", run_file, "--address", "[2001:db8::5]:1", "--json").stdout)
    invite = Invite.parse(result["invite"])
    assert (invite.host, invite.port, result["address"]) == ("2001:db8::5", 1, "[2001:db8::5]:1")
    assert (result["uses"], result["expires_unix"]) == (1, invite.expires_unix)


def test_invite_without_a_run_points_at_init(tmp_path: Path) -> None:
    result = wantrain("invite", tmp_path / "run.toml")
    assert result.exit_code == 2
    assert "wantrain init" in result.stderr


def test_invite_with_the_key_of_another_run_is_refused(run_file: Path) -> None:
    RunKeys.create().save(run_file.with_suffix(".key"))
    result = wantrain("invite", run_file)
    assert result.exit_code == 2
    assert "not the key of the owner" in result.stderr
    assert not run_file.with_suffix(".db").exists()


# ---- daemons


def test_coordinator_passes_its_options_on(fake: Callable[..., None], tmp_path: Path) -> None:
    calls: list[Any] = []
    fake("wantrain.peers.coordinator_daemon", serve=lambda *a, **k: calls.append((a, k)))
    assert wantrain("coordinator", "r.toml").exit_code == 0
    assert wantrain(
        *("coordinator", "r.toml", "--bind", "127.0.0.1:0", "--advertise", "a:1", "--uses", 2, "--expires", "1m"),
        *("--metrics", "9463"),
    )
    for _, options in calls:
        assert isinstance(options.pop("on_event"), EventPrinter)
    defaults = {"bind": None, "advertise": None, "interface": None, "uses": 16, "expires_s": 86400.0, "metrics": ""}
    given = {"bind": "127.0.0.1:0", "advertise": "a:1", "uses": 2, "expires_s": 60.0, "metrics": "9463"}
    assert calls == [((Path("r.toml"),), defaults), ((Path("r.toml"),), {**defaults, **given})]


def test_peer_passes_its_options_on_and_exits_with_the_daemons_value(fake: Callable[..., None]) -> None:
    calls: list[Any] = []

    def serve(*arguments: object, **options: object) -> int:
        assert isinstance(options.pop("on_event"), EventPrinter)
        calls.append((arguments, options))
        return 7

    fake("wantrain.peers.daemon", serve=serve)
    assert wantrain("peer", INVITE, "--", "python", "train.py", "--name", "mine", "--").exit_code == 7
    options = ["--name", "b", "--home", "h", "--bind", "0.0.0.0:9", "--max-restarts", 0, "--give-up", "5s"]
    options += ["--max-upload", "50mbit", "--max-upload-per-peer", "800kbit"]
    options += ["--checkpoints", "c", "--resume", "r", "--initial", "i", "--device", "cuda:1"]
    options += ["--track", "tensorboard:logs", "--track", "wandb", "--metrics", "9464"]
    assert wantrain("peer", INVITE, *options, "--advertise", "b:9", "--json", "--", "true").exit_code == 7
    defaults = {"bind": "0.0.0.0:0", "advertise": None, "max_restarts": 3, "give_up_s": 300.0}
    defaults |= {"max_upload_bytes_per_s": None, "max_upload_per_peer_bytes_per_s": None, "wishes": Wishes()}
    defaults["device"] = "cpu"
    defaults["watch"] = Watch()
    defaults["owner"] = None
    assert calls == [
        ((INVITE, ("python", "train.py", "--name", "mine", "--")), {"name": None, "home": None} | defaults),
        (
            (INVITE, ("true",)),
            {
                "name": "b",
                "home": Path("h"),
                "bind": "0.0.0.0:9",
                "advertise": "b:9",
                "max_restarts": 0,
                "give_up_s": 5.0,
                "max_upload_bytes_per_s": 6.25e6,
                "max_upload_per_peer_bytes_per_s": 1e5,
                "wishes": Wishes(Path("c"), Path("r"), Path("i")),
                "device": "cuda:1",
                "watch": Watch(("tensorboard:logs", "wandb"), "9464"),
                "owner": None,
            },
        ),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--track", "csv"], "--track is 'csv', allowed is tensorboard or tensorboard:DIR"),
        (["--metrics", "9464x"], "--metrics is '9464x', allowed is HOST:PORT"),
        (["--bind", "0.0.0.0:70000"], "allowed is host:port with a port from 0 to 65535"),
        (["--advertise", "example.org:0"], "a port from 1 to 65535"),
        (["--interface", "nope7"], "no interface 'nope7' with an address; this host has lo (127.0.0.1)"),
        (
            ["--interface", "lo", "--bind", "192.0.2.1:0"],
            "--bind 192.0.2.1:0 is not an address of lo, which has 127.0.0.1",
        ),
        (["--outbound-only", "--advertise", "a:1"], "--outbound-only together with --advertise"),
    ],
)
def test_settings_of_where_to_listen_name_what_is_wrong(options: list[str], words: str) -> None:
    result = wantrain("peer", INVITE, *options, "--", "true")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "next: " in result.stderr


def test_an_interface_gives_the_host_and_outbound_only_no_address_at_all(fake: Callable[..., None]) -> None:
    binds: list[Any] = []
    fake("wantrain.peers.daemon", serve=lambda *_, **options: binds.append(options["bind"]) or 0)
    wantrain("peer", INVITE, "--interface", "lo", "--", "true")
    wantrain("peer", INVITE, "--interface", "lo", "--bind", "0.0.0.0:7701", "--", "true")
    wantrain("peer", INVITE, "--outbound-only", "--", "true")
    assert binds == ["127.0.0.1:0", "127.0.0.1:7701", None]


@pytest.mark.parametrize(
    ("name", "said"),
    [("n" * 129, "of 129 characters"), ("a\nb", r"'a\nb'"), ("\udcff", r"'\udcff'"), ("\x1b[31m", r"'\x1b[31m'")],
)
def test_a_peers_name_that_the_run_would_not_take_is_refused_at_once(name: str, said: str) -> None:
    result = wantrain("peer", INVITE, "--name", name, "--", "true")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "up to 128 printable" in result.stderr
    assert "next: give a shorter or plainer one" in result.stderr


@pytest.mark.parametrize("bad", ["50", "50mb", "0mbit", "fast", "1kbit", "2000gbit", "1e3mbit"])
def test_a_rate_that_is_none_is_refused_with_an_example(bad: str) -> None:
    result = wantrain("peer", INVITE, "--max-upload", bad, "--", "true")
    assert result.exit_code == 2
    assert f"--max-upload is {bad!r}" in result.stderr
    assert "50mbit" in result.stderr


def test_peer_without_a_command_waits_for_scripts_and_ends_with_its_owner(fake: Callable[..., None]) -> None:
    calls: list[Any] = []
    fake("wantrain.peers.daemon", serve=lambda *a, **options: calls.append((a, options["owner"])) or 0)
    wantrain("peer", INVITE)
    wantrain("peer", INVITE, "--until-exit", 77)
    assert calls == [((INVITE, ()), None), ((INVITE, ()), 77)]
    result = wantrain("peer", INVITE, "--until-exit", 77, "--", "true")
    assert (result.exit_code, "without a training command" in result.stderr) == (2, True)


def emitting(events: list[dict[str, Any]]) -> Callable[..., None]:
    def serve(*_: object, on_event: Callable[[dict[str, Any]], None], **__: object) -> None:
        for event in events:
            on_event(event)

    return serve


def test_events_are_one_line_each_with_invite_to_copy(fake: Callable[..., None]) -> None:
    invite = "wantrain://a:1/" + "x" * 300
    events = [
        {"event": "listening", "address": "a:1", "invite": invite, "run": "00ff"},
        {"event": "joined", "peer": "aa", "name": "ber\x1b[31mlin\n"},
        {"event": "commit", "number": 3, "contributors": ["berlin", "tokyo"]},
        {"event": "lost", "name": "tokyo", "reason": "not seen for 4 s"},
    ]
    fake("wantrain.peers.coordinator_daemon", serve=emitting(events))
    lines = wantrain("coordinator", "r.toml").output.splitlines()
    assert [line[9:] for line in lines[:1] + lines[3:]] == [
        "listening    address a:1  run 00ff",
        "joined       ber·[31mlin  (aa)",
        "commit       number 3  contributors berlin, tokyo",
        "lost         tokyo: not seen for 4 s",
    ]
    assert lines[1:3] == ["on each machine:", f"wantrain peer '{invite}' -- python train.py"]


def test_events_as_json_lines_and_in_a_file(fake: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    events = [{"event": "view", "number": 1}, {"event": "commit", "digest": b"\x01\xff"}]
    fake("wantrain.peers.coordinator_daemon", serve=emitting(events))
    before = time.time()
    printed = wantrain("coordinator", "r.toml", "--json", "--events", file).stdout
    assert file.read_text() == printed
    assert wantrain("coordinator", "r.toml", "--events", file).exit_code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [before <= line.pop("time_unix") <= time.time() for line in lines] == [True] * 4, "a second run appends"
    assert lines == [{"event": "view", "number": 1}, {"event": "commit", "digest": "01ff"}] * 2


def test_events_file_that_cannot_be_opened_is_a_config_error(fake: Callable[..., None], tmp_path: Path) -> None:
    fake("wantrain.peers.coordinator_daemon", serve=emitting([]))
    result = wantrain("coordinator", "r.toml", "--events", tmp_path / "no" / "events.jsonl")
    assert result.exit_code == 2
    assert "--events" in result.stderr


def test_failing_output_is_given_up_loudly_and_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def full(_: str) -> int:
        raise OSError("No space left on device")

    with EventPrinter(as_json=True, file=tmp_path / "events.jsonl") as printer:
        printer._outputs["events"] = SimpleNamespace(write=full)  # type: ignore[assignment]
        printer({"event": "one"})
        printer({"event": "two"})
    captured = capsys.readouterr()
    assert captured.err == "warning: no more events to events: No space left on device\n"
    assert captured.out.count("\n") == 2
    assert (tmp_path / "events.jsonl").read_text() == captured.out


def test_a_closed_pipe_is_given_up_loudly_and_does_not_end_a_daemon(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        os.close(reader)
        with EventPrinter(as_json=False, file=None) as printer:
            printer({"event": "one"})
            printer({"event": "two"})
        with suppress(BrokenPipeError):
            pipe.close()
    assert capsys.readouterr().err == "warning: no more events to standard output: [Errno 32] Broken pipe\n"


def test_a_name_with_letters_that_the_terminal_lacks_is_shown_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    with EventPrinter(as_json=False, file=None) as printer:
        printer({"event": "joined", "name": "北京 in März"})
    sys.stdout.flush()
    assert "?? in März" in written.getvalue().decode("latin-1")


def test_a_path_that_cannot_be_used_is_named_with_the_next_step(fake: Callable[..., None], tmp_path: Path) -> None:
    def serve(*_: object, **__: object) -> None:
        (tmp_path / "nowhere" / "run.lock").open("w")

    fake("wantrain.peers.coordinator_daemon", serve=serve)
    result = wantrain("coordinator", "r.toml")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == f"error: {tmp_path / 'nowhere' / 'run.lock'}: No such file or directory"
    assert result.stderr.splitlines()[1].startswith("next: ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_is_an_error_also_where_no_file_is_named(fake: Callable[..., None], number: int) -> None:
    def serve(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    fake("wantrain.peers.coordinator_daemon", serve=serve)
    result = wantrain("coordinator", "r.toml")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (2, f"error: {os.strerror(number)}")
    assert "room" in result.stderr.splitlines()[1]


def test_a_command_without_a_standard_output_runs(tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m wantrain init run.toml >&-'
    process = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert (tmp_path / "run.toml").exists()


# ---- status


def test_status_shows_peers_syncs_and_commits(fake: Callable[..., None], run_file: Path) -> None:
    asked: list[Any] = []
    fake("wantrain.peers.status", query=lambda path, timeout_s: asked.append((path, timeout_s)) or DOCUMENT)
    result = wantrain("status", run_file, "--timeout", "2s")
    assert (result.exit_code, asked) == (0, [(run_file, 2.0)])
    expected = ["eng·[31mlish (00112233445566ff)", "1 of 2 ready", "berlin", "member (late)", "not seen", "1,234"]
    expected += ["words", "60,000", "2 of 3", "71.3 %", "68.0 %", "berlin 1,980", "17"]
    expected += [
        "4.2 MB",
        "param#13.2",
        "tokyo 0.8 s late",
        "berlin, tokyo",
        "3 min",
        "dddddddddddddddd",
        "differ by 0.0123",
    ]
    expected += ["200 ms", "250 ms", "direct", "rms0.35+zstd"]
    assert [text for text in expected if text not in result.output] == []
    assert [text for text in ("lost (late)", "waits for berlin", "\x1b") if text in result.output] == []


def test_status_as_json_is_the_document(fake: Callable[..., None], run_file: Path) -> None:
    fake("wantrain.peers.status", query=lambda path, timeout_s: DOCUMENT)
    assert json.loads(wantrain("status", run_file, "--json").stdout) == DOCUMENT


def test_status_of_a_young_run_needs_no_optional_fields(fake: Callable[..., None], run_file: Path) -> None:
    fake(
        "wantrain.peers.status",
        query=lambda path, timeout_s: {"run": {"name": "a", "id": "b"}, "peers": [{"peer": "c"}]},
    )
    result = wantrain("status", run_file)
    assert result.exit_code == 0
    assert "None" not in result.output


def unreachable(*_: object) -> dict[str, Any]:
    raise UnreachableError("nobody answers at 10.0.0.1:7700")


def test_status_without_the_coordinator_tells_what_is_on_record(fake: Callable[..., None], run_file: Path) -> None:
    with Store(run_file.with_suffix(".db")) as store:
        store.put_peer(PeerRow("aa", "berlin", b"i" * 32, b"k" * 32, ""))
        store.put_genesis(b"m", b"s", b"c")
        store.append_commit(1, b"r")
        store.put_view(4, ["aa", "bb"])
    fake("wantrain.peers.status", query=unreachable)
    result = wantrain("status", run_file)
    assert result.exit_code == 4
    expected = ["nobody answers at 10.0.0.1:7700", "wantrain coordinator"]
    expected += ["last commit on record: 1", "members of view 4: berlin, bb"]
    assert [text for text in expected if text not in result.output] == []
    result = wantrain("status", run_file, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["code"], document["log"], document["view"]["members"]) == (
        4, 4, {"head": 1}, ["aa", "bb"],
    )  # fmt: skip


def test_status_makes_no_database(fake: Callable[..., None], run_file: Path) -> None:
    fake("wantrain.peers.status", query=unreachable)
    assert wantrain("status", run_file).exit_code == 4
    assert not run_file.with_suffix(".db").exists()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_watches_through_an_outage_until_ctrl_c(
    fake: Callable[..., None], run_file: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    answers = iter([DOCUMENT, None, DOCUMENT])

    def query(*_: object) -> dict[str, Any]:
        try:
            return next(answers) or unreachable()
        except StopIteration:
            raise KeyboardInterrupt from None

    fake("wantrain.peers.status", query=query)
    monkeypatch.setattr(status_command.time, "sleep", lambda _: None)
    result = wantrain("status", run_file, "--watch", *options)
    assert result.exit_code == 130
    assert next(answers, "used up") == "used up"


# ---- demo


def test_demo_passes_its_options_on_and_exits_with_its_value(fake: Callable[..., None]) -> None:
    asked: list[SimpleNamespace] = []
    fake("wantrain.demo.run", DemoOptions=SimpleNamespace, run_demo=lambda options: asked.append(options) or 1)
    assert wantrain("demo").exit_code == 1
    wantrain("demo", "--peers", 2, "--rounds", 5, "--no-churn", "--seed", 9, "--out", "o", "--codec", "fp32", "--json")
    defaults = {"peers": 4, "rounds": None, "method": "diloco", "codec": "", "churn": True, "seed": 0, "out": None}
    given = {"peers": 2, "rounds": 5, "churn": False, "seed": 9, "out": Path("o"), "codec": "fp32"}
    assert [vars(options) for options in asked] == [defaults | {"json": False}, defaults | given | {"json": True}]


def test_main_is_a_click_group_for_the_installed_script() -> None:
    assert isinstance(main, click.Group)
