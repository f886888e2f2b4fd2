"""Fixtures of all tests."""

import json
import os
from collections.abc import Callable

import pytest

MEASURED = "WANTRAIN_MEASURED"
"""Environment variable that names the file for figures, one JSON object in a line; without it they are dropped."""

Measured = Callable[[int, str, float, str], None]


def pytest_configure() -> None:
    from hypothesis import settings  # not sooner: its plugin minds being imported before pytest has begun

    settings.register_profile("suite", deadline=None)  # a machine may be slow: no test asserts a time
    settings.load_profile("suite")


@pytest.fixture
def measured() -> Measured:
    """Takes down a figure for the documents: row of the scenario table, what it is, value, unit."""

    def write(row: int, what: str, value: float, unit: str) -> None:
        if path := os.environ.get(MEASURED):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"row": row, "what": what, "value": value, "unit": unit}) + "\n")

    return write
