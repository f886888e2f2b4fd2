"""What taking part costs the training loop itself: hooks, stall per sync, device memory; with the demo's model."""

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from wantrain.demo import train
from wantrain.errors import ConfigError, WantrainError
from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.messages import Attach, Attached, Contribute, Detach, Detached, Granted, Record, pack, unpack
from wantrain.peers.shared_memory import LOCAL_RUN
from wantrain.replica import Replica
from wantrain.session import Swarm
from wantrain.trainer_shell import DAEMON
from wantrain.transport.device import device_of
from wantrain.transport.link import Received
from wantrain.transport.zmq_link import ZmqLink

WARM_UP_STEPS = 5
WAIT_CEILING_S = 60.0


class _Beside(threading.Thread):
    """A peer without a run, which answers each contribution with itself; it works only while the trainer waits."""

    def __init__(self, folder: Path, stream: Stream) -> None:
        super().__init__(daemon=True)
        self.address = f"ipc://{folder}/socket"
        self.failure: BaseException | None = None
        self._segment, self._stream = folder / "segment", stream
        self._engine: Engine | None = None
        self._stopping = threading.Event()

    def run(self) -> None:
        link = ZmqLink(LOCAL_RUN, bind=self.address)
        try:
            while not self._stopping.is_set():
                for event in link.poll(0.1):
                    if not isinstance(event, Received):
                        continue
                    for reply in self._react(unpack(event.message)):
                        link.reply(event.connection, pack(reply))
                        if isinstance(reply, Granted) and self._engine is not None and self._engine.segment is not None:
                            self._engine.segment.bump()
        except BaseException as error:
            self.failure = error
        finally:
            if self._engine is not None:
                self._engine.close()
            link.close(linger_s=1.0)

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def _react(self, record: Record) -> list[Record]:
        name = self._stream.name
        match record:
            case Attach(manifest) if self._engine is None:
                engine = self._engine = Engine(manifest, (self._stream,))
                engine.open_segment(self._segment)
                engine.grant(name, "start")
                attached = Attached("p" * 52, "bench", str(self._segment), (asdict(self._stream),), False)
                return [attached, Granted(name, "start", 0, 0, 0)]
            case Contribute(serial=serial) if self._engine is not None:
                engine = self._engine
                engine.stage(name)
                engine.use_stage(name)
                chunks = range(len(engine._vectors[name].bounds))
                engine.apply(name, [engine.reduce(name, k, [(1.0, None)], 1.0, True) for k in chunks], index=serial)
                engine.grant(name, "merge")
                return [Granted(name, "merge", serial, serial, serial * self._stream.every)]
            case Detach():
                return [Detached()]
            case _:
                return []


def measure(
    every: int, rounds: int, progress: Callable[[str], None], *, device: str = "cpu", delay: int = 0
) -> dict[str, Any]:
    """On one thread, train the demo's model for `rounds` rounds of `every` steps beside a peer, and time the hooks.

    The same loop without a peer takes turns with it.

    Args:
        every: inner steps of a round.
        rounds: that count.
        progress: is told what is done.
        device: of the model, "cpu" or "cuda", also with a number.
        delay: inner steps that are made while an exchange is under way.

    Returns:
        `parameters`, `every`, `rounds`, `delay`, `device`; `step_ms`: median of a whole inner step without its hooks;
        `hooks_ms`: mean time in hooks per step, without waiting; `round_ms`: of the step that ends a round;
        `between_ms`: median of the others; `share`: hooks_ms over step_ms; `alone_ms`: median of a round of the loop
        without a peer; `with_ms`: with it, less what was waited; `stall_ms`: of their difference; `staged_ms`: mean
        of what this thread spends on copies in a round; `waited_ms`: on waiting; `device_bytes`: how much more of the
        device's memory is allocated at most in rounds with a peer, 0 on the CPU.

    Raises:
        ConfigError: there is no such device, or the delay is longer than a round.
        WantrainError: the peer beside the trainer has failed.
    """
    if not 0 <= delay <= every:
        raise ConfigError(f"delay is {delay}, allowed is 0 to {every}, the steps of a round")
    found = device_of(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(every, rounds, delay, progress, found)
    finally:
        torch.set_num_threads(threads)


def _settled(device: torch.device) -> float:
    """The time, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(device: torch.device) -> int:
    """The most of the device's memory that was taken since this was called last; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _measured(
    every: int, rounds: int, delay: int, progress: Callable[[str], None], device: torch.device
) -> dict[str, Any]:
    alone, loop = (train.Loop(train.parse([]), device) for _ in range(2))
    parameters = sum(p.numel() for p in loop.model.parameters())
    stream = Stream("param", every=every, merge="nesterov", codec="fp32", delay=delay)
    with tempfile.TemporaryDirectory(prefix="wantrain-") as folder:
        beside = _Beside(Path(folder), stream)
        beside.start()
        link = ZmqLink(LOCAL_RUN)
        swarm = Swarm(link, Replica(loop.model, (loop.optimizer,)), wait_ceiling_s=WAIT_CEILING_S)
        timings: list[float] = []

        def timed(hook: Callable[[], None]) -> Callable[..., None]:
            def run(*_: object) -> None:
                began, waited_s = time.perf_counter(), swarm.waited_s
                hook()
                timings.append(time.perf_counter() - began - (swarm.waited_s - waited_s))

            return run

        try:
            link.connect(DAEMON, beside.address, b"")
            swarm.attach()
            loop.optimizer.register_step_pre_hook(timed(swarm._before_step))
            loop.optimizer.register_step_post_hook(timed(swarm._after_step))
            hooks_s, steps_s = [], []
            progress(f"{parameters:,} parameters, {rounds} rounds of {every} steps …")
            for _ in range(WARM_UP_STEPS):
                alone.step()
                loop.step()
            alone_s, with_s, peaks = list[float](), list[float](), ([0], [0])
            _peak_bytes(device)
            staged_s, waited_s = swarm.staged_s, swarm.waited_s
            # What else runs here changes from second to second, so the two take turns as short as can be. On a GPU
            # each turn ends with waiting for it, which must not be where it copies beside the next steps.
            turn = every if device.type == "cuda" else 1
            for _ in range(rounds):
                alone_s.append(0.0)
                with_s.append(0.0)
                for _ in range(every // turn):
                    began = _settled(device)
                    for _ in range(turn):
                        alone.step()
                    alone_s[-1] += _settled(device) - began
                    peaks[0].append(_peak_bytes(device))
                    began, waited_before_s = _settled(device), swarm.waited_s
                    for _ in range(turn):
                        step_began, waited_in_step_s = time.perf_counter(), swarm.waited_s
                        timings.clear()
                        loop.step()
                        whole_s = time.perf_counter() - step_began - (swarm.waited_s - waited_in_step_s)
                        hooks_s.append(sum(timings))
                        steps_s.append(whole_s - sum(timings))
                    with_s[-1] += _settled(device) - began - (swarm.waited_s - waited_before_s)
                    peaks[1].append(_peak_bytes(device))
            staged_s, waited_s = swarm.staged_s - staged_s, swarm.waited_s - waited_s
            swarm.leave()
        finally:
            swarm.close()
            beside.stop()
        if beside.failure is not None:
            raise WantrainError(f"the peer beside the trainer has failed: {beside.failure!r}")
    ends = [hooks for k, hooks in enumerate(hooks_s) if (k + 1 + WARM_UP_STEPS) % every == 0]
    return {
        "parameters": parameters,
        "every": every,
        "rounds": rounds,
        "step_ms": 1e3 * median(steps_s),
        "hooks_ms": 1e3 * sum(hooks_s) / len(hooks_s),
        "round_ms": 1e3 * median(ends),
        "between_ms": 1e3 * median(hooks_s),
        "share": sum(hooks_s) / len(hooks_s) / median(steps_s),
        "delay": delay,
        "device": str(device),
        "alone_ms": 1e3 * median(alone_s),
        "with_ms": 1e3 * median(with_s),
        "stall_ms": 1e3 * median(took - alone for took, alone in zip(with_s, alone_s, strict=True)),
        "staged_ms": 1e3 * staged_s / rounds,
        "waited_ms": 1e3 * waited_s / rounds,
        "device_bytes": max(peaks[1]) - max(peaks[0]),
    }


def table(row: dict[str, Any]) -> Table:
    """The result of `measure` for a terminal."""
    shown = Table(title=f"The trainer's own cost: {row['parameters']:,} parameters, a sync every {row['every']} steps")
    for heading in ("inner step", "hooks per step", "between syncs", "at a sync", "share of step time"):
        shown.add_column(heading, justify="right")
    times = [f"{row[key]:.3f} ms" for key in ("step_ms", "hooks_ms", "between_ms", "round_ms")]
    shown.add_row(*times, f"{row['share']:.2%}")
    shown.caption = (
        f"{row['device']}, delay {row['delay']}: a round takes {row['alone_ms']:.1f} ms alone, "
        f"{row['with_ms']:.1f} ms with a peer: {row['stall_ms']:.3f} ms more for each sync ({row['staged_ms']:.3f} ms "
        f"for copies), and {row['waited_ms']:.3f} ms of waiting; "
        f"{row['device_bytes'] / 2**20:.1f} MiB more of the device's memory"
    )
    return shown
