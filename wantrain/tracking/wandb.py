"""Weights & Biases: one of its runs for each peer, grouped by the run; offline if WANDB_MODE says so."""

import os
from typing import Any

from wantrain.errors import ConfigError
from wantrain.tracking.tracker import Open, Point, Source

PROJECT = "wantrain"


def load(source: Source, text: str) -> Open:
    import wandb

    return lambda: WeightsAndBiases(wandb, source, text or PROJECT)


class WeightsAndBiases:
    """Logs each point at its step; a peer that is started again goes on with the same line."""

    def __init__(self, wandb: Any, source: Source, project: str) -> None:
        # Never ask at the terminal: it belongs to the training command.
        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False, verify=False):
            raise ConfigError(
                "there is no API key", hint="run `wandb login` on this machine, or set WANDB_MODE=offline"
            )
        self._run = wandb.init(
            project=project,
            name=source.title,
            group=source.run,
            id=f"{source.run}-{source.peer}",
            resume="allow",
            dir=str(source.home),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        self._step = 0

    def write(self, point: Point) -> None:
        self._step = max(self._step, point.step)  # it takes no step below the one before; a run may go back
        self._run.log({**point.numbers, "round": point.round}, step=self._step)

    def close(self) -> None:
        self._run.finish()
