"""Fixtures of the process tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.process.harness import Run


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes the test's run with its coordinator started; options as of `Run`. Nothing of it outlives the test."""
    with ExitStack() as runs:

        def make(**options: Any) -> Run:
            run = runs.enter_context(Run(tmp_path, **options))
            run.coordinator()
            return run

        yield make
