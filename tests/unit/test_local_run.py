"""`wantrain local` before it starts anything: its options in words, run.toml, and arguments of the script."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wantrain import local_run
from wantrain.cli.main import main
from wantrain.config import RunSpec
from wantrain.errors import ConfigError
from wantrain.local_run import LocalOptions, run_local
from wantrain.new_run import create_local_run


def test_the_command_hands_on_method_options_and_the_scripts_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LocalOptions] = []
    monkeypatch.setattr(local_run, "run_local", lambda options: seen.append(options) or 5)  # type: ignore[func-returns-value]
    words = "local train.py --peers 8 --method local-sgd --option every=50 --option outer_lr=0.5 --option late=adopt"
    result = CliRunner().invoke(main, [*words.split(), "--json", "--", "--lr", "3e-4", "--peers", "{i}"])
    assert result.exit_code == 5, result.output
    (options,) = seen
    assert (options.script, options.arguments) == (Path("train.py"), ("--lr", "3e-4", "--peers", "{i}"))
    assert (options.peers, options.method, options.json) == (8, "local-sgd", True)
    assert options.options == {"every": 50, "outer_lr": 0.5, "late": "adopt"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.py"], "nowhere.py not found"),
        (["{script}", "--option", "every"], "--option is 'every', allowed is NAME=VALUE"),
        (["{script}", "--option", "evry=5"], "no option 'evry'"),
        (["{script}", "--method", "dilocco"], "unknown method 'dilocco'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words_and_leaves_no_folder(
    words: list[str], message: str, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.touch()
    words = [word.replace("{script}", str(script)) for word in words]
    result = CliRunner().invoke(main, ["local", *words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_another_run_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    (tmp_path / "train.py").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        run_local(LocalOptions(tmp_path / "train.py", out=tmp_path))


@pytest.mark.parametrize("left", ["run.db", "run.key"])
def test_what_another_run_has_left_is_not_written_over(left: str, tmp_path: Path) -> None:
    (tmp_path / left).write_bytes(b"its own")
    with pytest.raises(ConfigError, match=left):
        create_local_run(tmp_path / "run.toml", name="x", method="diloco", codec="", options={})
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(left, b"its own")]


@pytest.mark.parametrize("options", [{"every": 7}, {"every": 7, "outer_lr": 0.3}])
def test_options_of_the_method_are_in_the_run_file(options: dict[str, Any], tmp_path: Path) -> None:
    create_local_run(tmp_path / "run.toml", name="x", method="diloco", codec="bf16", options=options)
    spec = RunSpec.load(tmp_path / "run.toml")
    assert spec.streams[0].every == 7
    assert options.items() <= spec.method.options.items()
    assert (spec.wire.codec, spec.coordinator.bind) == ("bf16", "127.0.0.1:0")
