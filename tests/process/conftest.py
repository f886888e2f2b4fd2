"""Fixtures of the process tests."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.process.harness import Run
from wantrain.demo.processes import terminated_like_ctrl_c


@pytest.fixture(scope="session", autouse=True)
def ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the tests as Ctrl-C does, so that nothing of what they have started outlives them.

    A shell that starts the tests in the background has them ignore Ctrl-C, which all that they start would inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with terminated_like_ctrl_c():
        yield


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes the test's run with its coordinator started; options as of `Run`. Nothing of it outlives the test."""
    with ExitStack() as runs:

        def make(**options: Any) -> Run:
            run = runs.enter_context(Run(tmp_path, **options))
            run.coordinator()
            return run

        yield make
