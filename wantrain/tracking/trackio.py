"""trackio: one of its runs for each peer, in its local database unless TRACKIO_… or HF_… settings say otherwise."""

from typing import Any

from wantrain.tracking.tracker import Open, Point, Source

PROJECT = "wantrain"


def load(source: Source, text: str) -> Open:
    import trackio

    return lambda: Trackio(trackio, source, text or PROJECT)


class Trackio:
    """Logs each point at its step; a peer that is started again goes on with the same run."""

    def __init__(self, trackio: Any, source: Source, project: str) -> None:
        title = {"name": source.title, "group": source.run, "resume": "allow"}
        self._run = trackio.init(project=project, embed=False, auto_log_gpu=False, auto_log_cpu=False, **title)

    def write(self, point: Point) -> None:
        self._run.log({**point.numbers, "round": point.round}, step=point.step)

    def close(self) -> None:
        self._run.finish()
