"""The dependency rule, read from the imports: who may import what, and that the list of modules is the tree."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wantrain"
MODULES = {path.relative_to(ROOT).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

CORES = [
    "transport/wire", "transport/partition", "transport/digest", "transport/collective", "transport/direct",
    "transport/ring", "transport/pair", "transport/topologies", "transport/cost", "transport/ring_order",
    "transport/shares", "transport/reach", "transport/transfer", "transport/lanes", "transport/codec/names",
    "transport/pacing", "copy_order", "lab/shape", "lab/path", "lab/frames", "lab/fabric",
    "peers/messages", "peers/layout", "peers/timing", "peers/events", "peers/effects", "peers/update_log",
    "peers/membership", "peers/rounds", "peers/commit_log", "peers/coordinator_events", "peers/coordinator",
    "peers/syncs", "peers/casting", "peers/stranded", "peers/lacks", "peers/lease_desk",
    "peers/catchup", "peers/recovery", "peers/attempts", "peers/contributions", "peers/reports", "peers/participant",
    "peers/beginning", "peers/departure", "peers/reporter",
    "peers/leases", "peers/supply", "peers/wants", "peers/tempo",
    "peers/saved_state", "peers/saving", "peers/saver", "peers/save_duty",
    "peers/trainer", "peers/inheritance", "peers/outbox", "peers/link_table", "peers/planner", "peers/peer",
    "peers/offences", "peers/drops", "peers/visitors", "peers/findings", "peers/memory_store", "peers/common",
    "metrics/families", "metrics/ledger", "metrics/peer_meter", "metrics/coordinator_meter",
]  # fmt: skip


PURE = ("collections", "dataclasses", "difflib", "functools", "itertools", "math", "typing")
"""Of the standard library, what neither does I/O nor reads a clock."""


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Modules that a file imports, at any depth of its code."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module or ""


def within(name: str, *packages: str) -> bool:
    """Whether a module is one of these or inside one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(("library", "only"), [("zmq", "transport/zmq_*.py"), ("sqlite3", "peers/store.py")])
def test_a_library_is_imported_in_one_place(library: str, only: str) -> None:
    users = [name for name, path in MODULES.items() if any(within(m, library) for m in imports(path))]
    assert users
    assert [name for name in users if not fnmatch(name, f"wantrain/{only}")] == []


@pytest.mark.parametrize("core", CORES)
def test_a_core_does_no_io_and_reads_no_clock(core: str) -> None:
    forbidden = ("zmq", "torch", "time", "socket", "sqlite3", "os", "threading", "asyncio", "random", "secrets")
    path = PACKAGE / f"{core}.py"
    assert [name for name in imports(path) if within(name, *forbidden)] == []


def test_optimizers_import_torch_and_errors_only() -> None:
    allowed = ("torch", "wantrain.errors", "wantrain.optimizers")
    for path in (PACKAGE / "optimizers").rglob("*.py"):
        assert [name for name in imports(path) if not within(name, *allowed, *PURE)] == [], path.name


def test_transport_knows_nothing_of_peers_and_optimizers() -> None:
    above = ("wantrain.peers", "wantrain.optimizers", "wantrain.session", "wantrain.demo", "wantrain.cli")
    for path in (PACKAGE / "transport").rglob("*.py"):
        assert [name for name in imports(path) if within(name, *above)] == [], path.name


def test_peers_do_not_import_what_sits_on_top_of_them() -> None:
    for path in (PACKAGE / "peers").rglob("*.py"):
        assert [n for n in imports(path) if within(n, "wantrain.session", "wantrain.demo")] == [], path.name


def test_nothing_imports_cli() -> None:
    users = [
        name
        for name, path in MODULES.items()
        if not name.startswith("wantrain/cli/")
        and name != "wantrain/__main__.py"
        and any(within(m, "wantrain.cli") for m in imports(path))
    ]
    assert users == []


def test_every_module_says_what_it_is() -> None:
    silent = [name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_nothing_unpickles() -> None:
    unsafe = ("pickle", "marshal", "shelve", "dill")
    assert [name for name, path in MODULES.items() if any(within(m, *unsafe) for m in imports(path))] == []
    assert [name for name, path in MODULES.items() if "torch.load(" in path.read_text()] == []


def test_the_documented_modules_are_the_tree() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = {name.removeprefix("wantrain/") for name in re.findall(r"`([\w/]+\.py)`", text)}
    tree = {name.removeprefix("wantrain/") for name in MODULES if not name.endswith("__init__.py")}
    assert sorted(tree - named) == [], "modules that docs/architecture.md does not name"
    assert sorted(named - tree) == [], "modules that docs/architecture.md names and that do not exist"
