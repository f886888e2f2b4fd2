"""What is in scripts/deploy/ and docs/deploy.md: files are checked by their schedulers' own tools, commands by ours."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from tests.pages import DOCS, written
from wantrain.cli.main import COMMANDS, main

DEPLOY = DOCS.parent / "scripts" / "deploy"
FILES = {path.relative_to(DEPLOY).as_posix(): path for path in sorted(DEPLOY.rglob("*")) if path.is_file()}
MANIFESTS = ["kubernetes/coordinator.yaml", "kubernetes/peer.yaml"]
SKY = ["skypilot/coordinator.yaml", "skypilot/peer.yaml"]
UNITS = ["systemd/wantrain-coordinator.service", "systemd/wantrain-peer.service"]
COUNTS = {
    "Dockerfile": 0, "Dockerfile.dockerignore": 0, "slurm/peer.sbatch": 1, "skypilot/coordinator.yaml": 3,
    "skypilot/peer.yaml": 1, "kubernetes/coordinator.yaml": 2, "kubernetes/peer.yaml": 3,
    "systemd/wantrain-coordinator.service": 3, "systemd/wantrain-peer.service": 2,
}  # fmt: skip
"""wantrain commands in each file, those included that are only spoken of."""
LEAVE_S = 70
"""A minute at the very worst, and 10 s for trackers."""


def documents(name: str) -> list[Any]:
    yaml = pytest.importorskip("yaml", reason="scripts/setup dev installs PyYAML")
    return [document for document in yaml.safe_load_all(FILES[name].read_text()) if document]


def containers(document: Any) -> list[Any]:
    spec = document.get("spec", {}).get("template", {}).get("spec", {})
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


# ---- commands


def shell_commands(text: str) -> Iterator[list[str]]:
    """Words after "wantrain" of every command in a text, up to the end of the command."""
    text = text.replace("\\\n", " ")
    for found in re.finditer(rf"(?<![\w'-])wantrain ((?:{'|'.join(COMMANDS)})\b[^\n`]*)", text):
        yield shlex.split(_command(found[1]), comments=True)


def _command(text: str) -> str:
    """Cut at what ends a command in a shell: a parenthesis that it has not opened, or ; | & outside of quotes."""
    depth, quote = 0, ""
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth < 0 or (not quote and not depth and character in ";|&"):
            return text[:place]
        if character in "'\"" and not depth:
            quote = "" if quote == character else quote or character
    return text


def commands(name: str) -> list[list[str]]:
    found = list(shell_commands(FILES[name].read_text()))
    if name in MANIFESTS:  # what the image's entry point gets
        given = [container for document in documents(name) for container in containers(document)]
        found += [container["args"] for container in given if "command" not in container]
    return found


def parse(words: list[str]) -> None:
    """Let click read a command without running it; raises what the user would see."""
    command: click.Command = main
    context = click.Context(main, info_name="wantrain")
    while isinstance(command, click.Group):
        name, *words = words
        chosen = command.get_command(context, name)
        assert chosen is not None, name
        command = chosen
    try:
        command.make_context(command.name, list(words), parent=context)
    except click.MissingParameter:
        assert not words or "…" in words, words  # it is only spoken of


@pytest.mark.parametrize("name", FILES)
def test_the_commands_of_every_template_are_ours(name: str) -> None:
    found = commands(name)
    assert len(found) == COUNTS[name], found
    for words in found:
        parse(words)


@pytest.mark.parametrize("page", ["../README.md", "api.md", "deploy.md", "metrics.md", "examples.md"])
def test_the_commands_of_the_pages_are_ours(page: str) -> None:
    found = list(shell_commands((DOCS / page).read_text(encoding="utf-8")))
    assert len(found) >= 3
    for words in found:
        parse(words)


def test_a_wrong_option_would_be_found() -> None:
    (words,) = shell_commands("x && $(wantrain peer 'wantrain://…' --no-such-option 1 -- python train.py); y")
    assert words == ["peer", "wantrain://…", "--no-such-option", "1", "--", "python", "train.py"]
    with pytest.raises(click.NoSuchOption):
        parse(words)


def test_the_tables_of_the_page_are_those_of_the_plan() -> None:
    page = (DOCS / "deploy.md").read_text(encoding="utf-8")
    assert written("deploy.md") == page, "run scripts/pages and commit docs/deploy.md"


def test_the_page_names_every_file() -> None:
    page = (DOCS / "deploy.md").read_text(encoding="utf-8")
    folders = {name.rpartition("/")[0] for name in FILES}
    assert all(f"../scripts/deploy/{folder}" in page for folder in folders)


# ---- SLURM


def test_the_batch_script_is_one() -> None:
    checked = subprocess.run(["bash", "-n", FILES["slurm/peer.sbatch"]], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    lines = FILES["slurm/peer.sbatch"].read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    first = next(k for k, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert directives == [line for line in lines[:first] if line.startswith("#SBATCH")], (
        "sbatch stops at the first command"
    )
    options = {}
    for line in directives:
        found = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert found is not None, line
        options[found[1]] = found[2]
    known = {
        "job-name",
        "nodes",
        "ntasks",
        "gpus-per-node",
        "cpus-per-task",
        "mem",
        "time",
        "signal",
        "requeue",
        "output",
    }
    assert set(options) <= known
    signal = re.fullmatch(r"B:TERM@(\d+)", options["signal"] or "")
    assert signal is not None
    assert int(signal[1]) >= LEAVE_S
    assert re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", options["time"] or "")


@pytest.mark.parametrize("words", [[], ["invite.txt"]])
def test_the_batch_script_says_how_to_use_it(words: list[str]) -> None:
    script = ["bash", str(FILES["slurm/peer.sbatch"]), *words]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: sbatch peer.sbatch INVITE_FILE COMMAND..." in done.stderr


def test_the_batch_script_becomes_the_peer(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "wantrain"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$$"\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "invite").write_text("wantrain://host:1/x y\n")
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "SLURM_ARRAY_TASK_ID": "3"}
    script = ["bash", str(FILES["slurm/peer.sbatch"]), str(tmp_path / "invite"), "python", "train.py", "a b"]
    job = subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True)
    out = job.communicate()[0].splitlines()
    assert job.returncode == 0
    assert out[0] == str(job.pid), "SLURM's signal reaches the process that it has started only"
    assert out[1:3] == ["peer", "wantrain://host:1/x y"]
    assert out[-4:] == ["--", "python", "train.py", "a b"]
    parse(out[1:])


# ---- SkyPilot


@pytest.mark.parametrize("name", SKY)
@pytest.mark.filterwarnings("ignore")  # of what it imports
def test_skypilot_reads_its_files(name: str, monkeypatch: Any) -> None:
    if importlib.util.find_spec("sky") is None:
        pytest.skip("SkyPilot is not installed: it wants an older click, so an environment of its own")
    from sky import Task

    monkeypatch.chdir(DOCS.parent)
    task = Task.from_yaml(str(FILES[name]))
    assert task.name == f"wantrain-{name.removeprefix('skypilot/').removesuffix('.yaml')}"


@pytest.mark.parametrize("name", SKY)
def test_skypilot_files_have_what_a_task_has(name: str) -> None:
    (task,) = documents(name)
    assert set(task) <= {"name", "workdir", "resources", "secrets", "envs", "setup", "run"}
    assert set(task["resources"]) <= {"accelerators", "cpus", "memory", "disk_size", "use_spot", "ports"}
    for script in (task["setup"], task["run"]):
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


# ---- Kubernetes


@pytest.mark.parametrize("version", ["1.29", "1.32", "1.35"])
@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_takes_the_manifests(name: str, version: str) -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="scripts/setup dev installs kubernetes-validate")
    for document in documents(name):
        checker.validate(document, version, strict=True)


def test_a_wrong_manifest_would_be_found() -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="scripts/setup dev installs kubernetes-validate")
    deployment = documents("kubernetes/peer.yaml")[0]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 90
    with pytest.raises(checker.ValidationError):
        checker.validate(deployment, "1.32", strict=True)


def test_pods_have_time_to_leave_and_memory_to_share() -> None:
    deployment = documents("kubernetes/peer.yaml")[0]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= LEAVE_S
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    (shm,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"]["medium"] == "Memory"
    (peer,) = pod["containers"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in peer["volumeMounts"]
    for word in peer["args"]:
        for name in re.findall(r"\$\((\w+)\)", word):
            assert name in {entry["name"] for entry in peer["env"]}


def test_every_volume_label_and_port_that_is_named_is_there() -> None:
    for name in MANIFESTS:
        for document in documents(name):
            if not containers(document):
                continue
            spec, pod = document["spec"], document["spec"]["template"]
            volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
            volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
            assert spec["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
            for container in containers(document):
                assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
                assert container["resources"]["requests"]["memory"]
    service, stateful = documents("kubernetes/coordinator.yaml")
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    ports = {port["name"] for container in containers(stateful) for port in container.get("ports", [])}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


# ---- systemd


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = FILES[name].read_text()
    unit = tmp_path / Path(name).name
    assert "/opt/wantrain/.venv/bin/wantrain" in text
    unit.write_text(text.replace("/opt/wantrain/.venv/bin/wantrain", sys.executable))  # it has to be there
    checked = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    if "peer" in name:
        assert int(re.findall(r"TimeoutStopSec=(\d+)", text)[0]) >= LEAVE_S
        assert "KillMode=mixed" in text


# ---- the image


def test_the_image_is_made_of_files_that_are_there() -> None:
    text = FILES["Dockerfile"].read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    words = [line.split() for line in lines]
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert {line[0] for line in words} <= known
    assert [line[0] for line in words[:2]] == ["ARG", "FROM"]
    copied = [source.removeprefix("./") for line in words if line[0] == "COPY" for source in line[1:-1]]
    assert all((DOCS.parent / source).exists() for source in copied), copied
    ignored = FILES["Dockerfile.dockerignore"].read_text().splitlines()
    assert {f"!{source}" for source in copied} == {line for line in ignored if line.startswith("!")}
    extras = set(re.findall(r"'\.\[([\w,]+)\]'", text)[0].split(","))
    declared = set(re.findall(r"^(\w+) = \[", (DOCS.parent / "pyproject.toml").read_text(), re.MULTILINE))
    assert extras <= declared
    torch = re.findall(r"^torch==(.+)$", (DOCS.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert re.findall(r"^ARG TORCH=(.+)$", text, re.MULTILINE) == torch
