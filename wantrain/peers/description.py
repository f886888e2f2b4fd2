"""What a trainer says its model is to other software, looked at before anything is made of it; pure."""

import json
from typing import Any

from wantrain.peers.messages import MAX_CONFIG, Describe


def flaw(described: Describe) -> str:
    """Why a description cannot be used, in words; "" if it can."""
    for name, text, most in (
        ("config", described.config, MAX_CONFIG),
        ("generation config", described.generation_config, MAX_CONFIG // 8),
    ):
        if len(text) > most:
            return f"the {name} has {len(text):,} characters, allowed are {most:,}"
        if text or name == "config":
            try:
                read_config(text)
            except ValueError as error:
                return f"the {name} is {error}"
    return ""


def read_config(text: str) -> dict[str, Any]:
    """The object that a config's JSON is.

    Raises:
        ValueError: it is none, in words.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"JSON of the kind {type(found).__name__}, allowed is an object")
    return found
