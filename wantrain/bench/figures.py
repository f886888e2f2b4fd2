"""The file in which a benchmark or a study keeps its figures while it goes on."""

import json
from pathlib import Path
from typing import Any


def keep(record: dict[str, Any], figures: Path) -> None:
    """Replace the file as a whole, so that it is never half of one."""
    fresh = figures.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    fresh.replace(figures)
