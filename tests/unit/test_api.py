"""docs/api.md and the types of the package: what a user reads and what a user's checker sees is what is there."""

import re
import subprocess
import sys
from pathlib import Path

import wantrain
from tests.api import NOT_FOR_USERS, PAGE, documented, written

ROOT = Path(__file__).parents[2]

SCRIPT = """
import torch
import wantrain
from wantrain.errors import UnreachableError


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: wantrain.TokenFile) -> dict[str, object]:
    try:
        swarm = wantrain.join(model, optimizer, invite="wantrain://…", peer_options={"name": "berlin"})
    except UnreachableError as error:
        raise SystemExit(error.exit_code) from wantrain.WantrainError("no", hint=error.hint)
    with swarm:
        for tokens, targets in swarm.shard(data, batch=4):
            loss = torch.as_tensor(model(tokens, targets))
            swarm.tokens(tokens.numel())
            swarm.log(loss=loss.item())
            if swarm.round > 3 and not swarm.alone:
                break
        with swarm.evaluating() as phi:
            print(phi.round + phi.global_step + phi.number)
        weights: dict[str, torch.Tensor] = swarm.common_state_dict()
        swarm.load_state_dict(swarm.state_dict())
        return {**weights, "step": swarm.global_step + swarm.own_steps, "s": swarm.waited_s, "log": swarm.daemon_log}
"""


def test_the_page_of_the_api_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run python -m tests.api and commit docs/api.md"


def test_the_page_names_everything_that_is_public() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in sorted(documented()) if f"wantrain.{name}" not in page] == []
    members = {name for name in dir(wantrain.Swarm) if not name.startswith("_")} - NOT_FOR_USERS
    assert [name for name in sorted(members) if f"`{name}`" not in page and f"`swarm.{name}`" not in page] == []


def test_the_page_names_every_variable_of_the_environment_that_a_user_may_set() -> None:
    page = PAGE.read_text(encoding="utf-8")
    code = list((ROOT / "wantrain").glob("*.py"))
    read = {name for path in code for name in re.findall(r'environ(?:\.get\(|\[)"(WANTRAIN_\w+)"', path.read_text())}
    assert read == set(re.findall(r"`(WANTRAIN_\w+)`", page))


def test_a_users_script_passes_a_strict_type_check(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    settings = tmp_path / "mypy.ini"  # without torch's own types, to read which takes most of a minute
    settings.write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\n"
        "[mypy-torch.*]\nfollow_imports = skip\n[mypy-numpy.*]\nfollow_imports = skip\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(settings),
        "--cache-dir",
        str(ROOT / ".mypy_cache" / "script"),
    ]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_name_of_the_package_is_there() -> None:
    assert all(getattr(wantrain, name) is not None for name in wantrain.__all__)
