"""The tracker that is always there: one JSON line for each point in the peer's home, bounded by rotation."""

import json
from pathlib import Path

from wantrain.tracking.tracker import Open, Point, Source

FILE = "metrics.jsonl"
MAX_FILE_BYTES = 64 << 20
"""Two such files at most: more than a week of points with some forty numbers each."""


def load(source: Source, text: str) -> Open:
    return lambda: JsonLines(source.home / FILE)


class JsonLines:
    """Appends to `path`. A file that is full becomes "….1" in place of the one before.

    Raises:
        OSError: here and from `write`, if it cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = path.open("a", encoding="utf-8")

    def write(self, point: Point) -> None:
        if self._file.tell() >= self._max_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._path.open("a", encoding="utf-8")
        line = {"time_unix": point.time_unix, "step": point.step, "round": point.round, "numbers": dict(point.numbers)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
