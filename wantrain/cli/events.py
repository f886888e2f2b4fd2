"""Events of a daemon as they happen: one readable line each, or JSON lines, and a copy in a file."""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

from rich.text import Text

from wantrain.cli.terminal import console, plain, printable
from wantrain.errors import ConfigError

_STYLES = {
    "green": {"listening", "ready", "joined", "commit", "current", "attached"},
    "yellow": {"left", "behind", "waiting", "abort", "suspected", "tracker-late"},
    "red": {"lost", "refused", "trainer-exit", "device-failed", "tracker-failed", "error"},
}


class EventPrinter:
    """Takes events: dicts with their kind under "event"; adds "time_unix" where they are written as JSON.

    Used in a `with` statement, which closes the file at its end. A full disk or a closed pipe must not end a daemon:
    the output that fails is named once on stderr and given up.

    Raises:
        ConfigError: the events file cannot be opened.
    """

    def __init__(self, *, as_json: bool, file: Path | None) -> None:
        self._as_json = as_json
        self._console = console()
        self._outputs: dict[str, TextIO] = {"standard output": sys.stdout}
        self._file: TextIO | None = None
        if file:
            try:
                self._outputs[str(file)] = self._file = file.open("a", encoding="utf-8")
            except OSError as error:
                raise ConfigError(
                    f"--events is {str(file)!r}, which cannot be written: {error}", hint="choose another file"
                ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            with suppress(OSError):  # a full disk was named when the last line was written
                self._file.close()

    def __call__(self, event: dict[str, Any]) -> None:
        event = {"time_unix": time.time()} | event
        for name, output in list(self._outputs.items()):
            try:
                if output is sys.stdout and not self._as_json:
                    self._show(event)
                else:
                    output.write(json.dumps(event, default=plain) + "\n")
                    output.flush()
            except OSError as error:
                del self._outputs[name]
                print(f"warning: no more events to {name}: {error}", file=sys.stderr)

    def _show(self, event: dict[str, Any]) -> None:
        kind = printable(event.get("event", "event"))
        style = next((style for style, kinds in _STYLES.items() if kind in kinds), "cyan")
        clock = time.strftime("%H:%M:%S", time.localtime(event["time_unix"]))
        line = Text.assemble((f"{clock} ", "dim"), (f"{kind:<12} ", style), printable(_words(event)).replace("\n", " "))
        self._console.print(line, soft_wrap=True)
        if "invite" in event and kind == "listening":
            command = f"wantrain peer '{printable(event['invite'])}' -- python train.py"
            self._console.print(Text("on each machine:\n" + command), soft_wrap=True)
        if kind == "ready":
            export = f"export WANTRAIN_DAEMON={printable(event['daemon'])}"
            self._console.print(Text("for the script that trains here:\n" + export), soft_wrap=True)


def _words(event: dict[str, Any]) -> str:
    """Who first, what then, and the reason last."""
    hidden = {"time_unix", "event", "invite", "name", "peer", "reason"}
    name, peer = event.get("name"), event.get("peer")
    who = f"{name} ({peer})" if name and peer else str(name or peer or "")
    what = [f"{key} {_word(value)}" for key, value in event.items() if key not in hidden]
    return ": ".join(filter(None, ["  ".join(filter(None, [who, *what])), str(event.get("reason") or "")]))


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_word, value)) or "nobody"
    return str(plain(value))
