"""TensorBoard: event files under the peer's home or another folder, one subfolder for each peer."""

from pathlib import Path
from typing import Any

from wantrain.tracking.tracker import Open, Point, Source


def load(source: Source, text: str) -> Open:
    # Not torch.utils.tensorboard: that imports much of PyTorch's compiler for what these few lines do.
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder = Path(text).expanduser() if text else source.home / "tensorboard"
    return lambda: TensorBoard(EventFileWriter, event_pb2.Event, summary_pb2.Summary, folder / source.title)


class TensorBoard:
    """Writes scalars: the point's step as their step, its time as their time."""

    def __init__(self, writer: Any, event: Any, summary: Any, folder: Path) -> None:
        self._event, self._summary = event, summary
        self._writer = writer(str(folder))

    def write(self, point: Point) -> None:
        values = [self._summary.Value(tag=name, simple_value=number) for name, number in point.numbers.items()]
        values.append(self._summary.Value(tag="round", simple_value=point.round))
        event = self._event(wall_time=point.time_unix, step=point.step, summary=self._summary(value=values))
        self._writer.add_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
