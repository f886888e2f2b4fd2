"""The training API against a daemon in a thread: real sockets and shared memory, one-peer sums, scripted answers."""

import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

import wantrain
from wantrain import Swarm, trainer_shell
from wantrain.errors import ConfigError, ModelMismatchError, RefusedError, UnreachableError
from wantrain.optimizers.stream import Stream
from wantrain.peers.engine import Engine
from wantrain.peers.layout import stream_chunks, stream_elements
from wantrain.peers.messages import (
    Attach,
    Attached,
    Contribute,
    Detach,
    Detached,
    GenesisWritten,
    Granted,
    Log,
    Record,
    Refused,
    Waiting,
    pack,
    unpack,
)
from wantrain.peers.shared_memory import LOCAL_RUN
from wantrain.transport.codec import codec
from wantrain.transport.link import Received
from wantrain.transport.partition import chunk_bounds
from wantrain.transport.zmq_link import ZmqLink

torch.set_num_threads(1)

DEADLINE_S = 30.0
MEAN = Stream("param", every=2, merge="mean", codec="fp32")
NESTEROV = Stream("param", every=2, merge="nesterov", codec="fp32")
GRAD = Stream("grad", state="grad", every=1, codec="fp32", late="adopt")


class Daemon(threading.Thread):
    """A peer without a run: every sync commits at once, with the trainer's contribution or without.

    Args:
        folder: for socket and segment.
        streams: what the trainer is told.
        initial: the run's phi, or None to ask the trainer for it.
        answer: kind of the grant for a contribution; "" for none; "refuse".
        foreign: value of every element of the others' update.
    """

    def __init__(
        self,
        folder: Path,
        *streams: Stream,
        initial: float | None = 1.0,
        answer: Callable[[Contribute], str] = lambda _: "merge",
        foreign: float = 0.25,
    ) -> None:
        super().__init__(daemon=True)
        self.address = f"ipc://{folder}/socket"
        self.folder, self.streams, self.initial, self.answer, self.foreign = folder, streams, initial, answer, foreign
        self.engine: Engine | None = None
        self.received: list[Record] = []
        self.refuse_attach: Refused | None = None
        self.mute = False
        self.failure: BaseException | None = None
        self.listening = threading.Event()
        self._attached: set[bytes] = set()
        self.pending: list[Granted] = []
        self.release = threading.Event()
        """Set: grants that were held back (answer "later") go out."""
        self.stopping = threading.Event()

    def run(self) -> None:
        link = ZmqLink(LOCAL_RUN, bind=self.address)
        self.listening.set()
        try:
            while not self.stopping.is_set():
                for event in link.poll(0.01):
                    assert isinstance(event, Received), event
                    record = unpack(event.message)
                    if self.asked_again(record):
                        continue
                    self.received.append(record)
                    for reply in () if self.mute else self.react(record):
                        if link.reply(event.connection, pack(reply)):  # else the trainer has gone meanwhile
                            self.sent(reply)
                    connection = event.connection
                if self.release.is_set():
                    while self.pending:
                        grant = self.pending.pop(0)
                        self.tensors.grant(grant.stream, grant.kind)
                        assert link.reply(connection, pack(grant))
                        self.sent(grant)
        except BaseException as error:
            self.failure = error
        finally:
            link.close(linger_s=1.0)

    def asked_again(self, record: Record) -> bool:
        """Whether a trainer presents itself that was answered before: it may ask again before it hears the answer."""
        if not isinstance(record, Attach):
            return False
        again = record.boot in self._attached
        self._attached.add(record.boot)
        return again

    def sent(self, record: Record) -> None:
        if isinstance(record, Granted) and self.tensors.segment is not None:
            self.tensors.segment.bump()

    @property
    def tensors(self) -> Engine:
        assert self.engine is not None
        return self.engine

    def react(self, record: Record) -> list[Record]:
        match record:
            case Attach(manifest):
                if self.refuse_attach:
                    return [self.refuse_attach]
                self.manifest = manifest
                if self.engine is not None:
                    self.engine.close()
                self.engine = Engine(manifest, self.streams)
                path = self.folder / "segment"
                self.engine.open_segment(path)
                rows = tuple(asdict(stream) for stream in self.streams)
                attached = Attached("p" * 52, "berlin", str(path), rows, self.initial is None)
                return [Waiting("for the others"), attached, *([] if self.initial is None else self.start_grants())]
            case GenesisWritten():
                self.tensors.adopt_genesis()
                return self.start_grants()
            case Contribute():
                return self.contributed(record)
            case Detach():
                return [Detached()]
        return []

    def start_grants(self) -> list[Record]:
        grants: list[Record] = []
        for stream in self.streams:
            if stream.held:
                if self.initial is not None:
                    self.tensors.phi(stream.name).fill_(self.initial)
                self.tensors.grant(stream.name, "start")
                grants.append(Granted(stream.name, "start", 0, 4, 8))
        return grants

    def contributed(self, record: Contribute) -> list[Record]:
        answer = self.answer(record)
        if answer == "refuse":
            return [Refused("non-finite", "NaN in it", "clip")]
        name = record.stream
        assert self.tensors.stage(name)[1]
        self.tensors.use_stage(name)
        kind = "merge" if answer == "later" else answer
        stream = next(s for s in self.streams if s.name == name)
        chunks = range(stream_chunks(stream, self.manifest))
        if kind in ("merge", "grad"):
            inputs: list[tuple[float, Any]] = [(1.0, None)]
            self.tensors.apply(name, [self.mean(name, k, self.others(stream, k, inputs)) for k in chunks])
        else:
            self.tensors.apply(name, [self.others(stream, k, [])[0][1] for k in chunks])
        grant = Granted(name, kind, record.serial, 4 + record.serial, 8 + 2 * record.serial)
        if answer == "later":
            self.pending.append(grant)
            return []
        self.tensors.grant(name, kind)
        return [Waiting("for berlin"), grant]

    def mean(self, name: str, chunk: int, inputs: list[tuple[float, Any]]) -> Any:
        return self.tensors.reduce(name, chunk, inputs, sum(weight for weight, _ in inputs), True)

    def others(self, stream: Stream, chunk: int, inputs: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
        """The inputs, and one whose every value is `foreign` if the sync is not the trainer's alone."""
        if inputs and stream.held:
            return inputs
        begin, end = chunk_bounds(stream_elements(stream, self.manifest))[chunk]
        out = torch.empty(4 * (end - begin), dtype=torch.uint8)
        codec("fp32").encode(torch.full((end - begin,), self.foreign), out)
        return [*inputs, (1.0, out.numpy().data)]

    def of(self, kind: type[Record]) -> list[Any]:
        return [record for record in self.received if isinstance(record, kind)]

    def stop(self) -> None:
        self.stopping.set()
        self.join(DEADLINE_S)
        assert not self.is_alive()


class Model(nn.Module):
    """Two tensors that every step moves: the gradient of the loss is 1 everywhere; one is tied, one frozen."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.full((3, 5), 10.0, dtype=dtype))
        self.second = nn.Parameter(torch.full((7,), 20.0, dtype=dtype))
        self.tied = self.first
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self) -> Tensor:
        return self.first.sum() + self.second.sum()


class Trainer:
    """An ordinary loop: plain SGD with learning rate 1, so that a step subtracts the gradient."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.model = Model(dtype)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model().backward()
        self.optimizer.step()

    @property
    def values(self) -> set[float]:
        return {value for p in self.model.parameters() if p.requires_grad for value in p.detach().flatten().tolist()}


D = TypeVar("D", bound=Daemon)


@contextmanager
def served(kind: type[D]) -> Iterator[Callable[..., D]]:
    """Makes daemons in a folder of their own; they are stopped at the end, and must not have failed."""
    folder, made = Path(tempfile.mkdtemp(prefix="wantrain-")), []  # a short path: that of a socket may have 103 bytes

    def make(*streams: Stream, **options: Any) -> D:
        made.append(kind(folder, *streams, **options))
        return made[-1]

    yield make
    for daemon in made:
        if daemon.is_alive():
            daemon.stop()
        if daemon.engine is not None:
            daemon.engine.close()
        assert daemon.failure is None
    shutil.rmtree(folder)


@pytest.fixture
def serve() -> Iterator[Callable[..., Daemon]]:
    with served(Daemon) as make:
        yield make


def joined(daemon: Daemon, trainer: Trainer) -> Swarm:
    daemon.start()
    assert daemon.listening.wait(DEADLINE_S)
    return wantrain.join(trainer.model, trainer.optimizer, daemon=daemon.address)


def until(
    condition: Callable[[], object], what: str, meanwhile: Callable[[], object] = lambda: time.sleep(0.001)
) -> None:
    """Wait for the condition, and do something between two looks at it."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} in {DEADLINE_S} s"
        meanwhile()


# ---- joining


def test_join_takes_over_the_runs_weights_and_names_the_peer(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    before = list(trainer.model.parameters())
    with joined(daemon, trainer) as swarm:
        assert trainer.values == {1.0}
        assert all(a is b for a, b in zip(before, trainer.model.parameters(), strict=True))
        assert (swarm.peer, swarm.round, swarm.global_step, swarm.streams) == ("berlin", 4, 8, (MEAN,))
        assert not swarm.alone


def test_the_manifest_has_trained_tensors_once_in_the_models_order(serve: Callable[..., Daemon]) -> None:
    daemon = serve(MEAN)
    with joined(daemon, Trainer(torch.bfloat16)):
        pass
    (attach,) = daemon.of(Attach)
    assert [(t.name, t.shape, t.dtype) for t in attach.manifest] == [
        ("first", (3, 5), "bfloat16"), ("second", (7,), "bfloat16")
    ]  # fmt: skip


def test_the_first_trainer_gives_the_run_its_weights(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(MEAN, initial=None), Trainer()
    with joined(daemon, trainer):
        assert trainer.values == {10.0, 20.0}
        assert daemon.tensors.phi("param").tolist() == [10.0] * 15 + [20.0] * 7


def test_another_model_is_refused_by_name(serve: Callable[..., Daemon]) -> None:
    daemon = serve(MEAN)
    daemon.refuse_attach = Refused("model", "the model differs from the run's:\n    missing here: third", "train it")
    with pytest.raises(ModelMismatchError, match="missing here: third"):
        joined(daemon, Trainer())


def test_without_a_daemon_join_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANTRAIN_DAEMON", raising=False)
    trainer = Trainer()
    with pytest.raises(ConfigError, match="wantrain peer '<invite>' -- python train.py"):
        wantrain.join(trainer.model, trainer.optimizer)


def test_a_daemon_that_never_answers_is_given_up(serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_shell, "JOIN_PATIENCE_S", 0.5)
    daemon = serve(MEAN)
    daemon.mute = True
    with pytest.raises(UnreachableError, match="no state of the run"):
        joined(daemon, Trainer())


def test_the_address_comes_from_the_environment(serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    daemon.start()
    assert daemon.listening.wait(DEADLINE_S)
    monkeypatch.setenv("WANTRAIN_DAEMON", daemon.address)
    with wantrain.join(trainer.model, trainer.optimizer) as swarm:
        assert swarm.peer == "berlin"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon"])
def test_a_bad_wait_ceiling_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANTRAIN_WAIT_CEILING_S", text)
    trainer = Trainer()
    with pytest.raises(ConfigError, match=text):
        wantrain.join(trainer.model, trainer.optimizer, daemon="ipc:///nowhere")


def test_a_model_without_trained_parameters_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter"):
        wantrain.join(model, torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0), daemon="ipc:///nowhere")


def named(name: str, shape: tuple[int, ...] = (1,)) -> nn.Module:
    model = nn.Module()
    model.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    return model


@pytest.mark.parametrize(
    ("model", "said", "hint"),
    [
        (named("n" * 513), "the name of a parameter has 513 characters, allowed are 512: nnn", "shorter names"),
        (named("deep", (1,) * 17), "deep has 17 dimensions, allowed are 16", "flatten"),
        (nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)), "1.weight has no shape yet", "one forward pass"),
    ],
)
def test_a_model_that_no_message_can_tell_of_is_refused_before_a_daemon_is_asked(
    model: nn.Module, said: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        wantrain.join(model, torch.optim.SGD(model.parameters(), lr=1.0), daemon="ipc:///nowhere")
    assert hint in caught.value.hint


def test_the_longest_name_and_a_lazy_module_that_was_used_can_be_told(serve: Callable[..., Daemon]) -> None:
    model = nn.Sequential(nn.LazyLinear(2), named("n" * 510))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model[0](torch.zeros(1, 3))
    daemon = serve(MEAN)
    daemon.start()
    assert daemon.listening.wait(DEADLINE_S)
    with wantrain.join(model, optimizer, daemon=daemon.address):
        pass
    (attach,) = daemon.of(Attach)
    assert [tensor.shape for tensor in attach.manifest] == [(2, 3), (2,), (1,)]
    assert len(attach.manifest[2].name) == 512


def test_the_package_does_not_import_torch() -> None:
    """The coordinator and the command line start without it."""
    code = "import sys, wantrain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="nothing"):
        wantrain.nothing  # noqa: B018


# ---- training


def test_after_h_steps_the_weights_are_phi_bit_for_bit(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(NESTEROV), Trainer()
    with joined(daemon, trainer) as swarm:
        for round_ in range(1, 4):
            trainer.step()
            trainer.step()
            mine = torch.cat([p.detach().flatten() for p in (trainer.model.first, trainer.model.second)])
            assert torch.equal(mine, daemon.tensors.phi("param"))
            assert (swarm.round, swarm.global_step) == (4 + round_, 8 + 2 * round_)
    assert [(c.serial, c.step) for c in daemon.of(Contribute)] == [(1, 2), (2, 4), (3, 6)]


def test_a_peer_that_missed_a_sync_keeps_its_progress_and_takes_the_others(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(MEAN, answer=lambda c: "move" if c.serial == 1 else "merge"), Trainer()
    with joined(daemon, trainer):
        trainer.step()
        trainer.step()
        # phi 1 -> 0.75 by the others; own 1 - 2 = -1 moves along; both are whole steps of 2**-2, so exact.
        assert trainer.values == {-1.25}
        until(lambda: len(daemon.of(Contribute)) == 2, "second contribution")
        trainer.step()
        trainer.step()
        # The contribution of before came in at -1.25; the two steps made since stay on top, and go out next.
        assert trainer.values == {-3.25}
        assert len(daemon.of(Contribute)) == 3


def test_a_late_peer_may_drop_its_progress(serve: Callable[..., Daemon]) -> None:
    daemon = serve(Stream("param", every=2, merge="mean", codec="fp32", late="adopt"), answer=lambda _: "move")
    trainer = Trainer()
    with joined(daemon, trainer):
        trainer.step()
        trainer.step()
        assert trainer.values == {0.75}


def test_steps_made_since_staging_stay_on_top_of_the_new_phi(serve: Callable[..., Daemon]) -> None:
    stream = Stream("param", every=3, delay=2, merge="mean", merge_options=(("lr", 0.5),), codec="fp32")
    daemon, trainer = serve(stream, answer=lambda _: "later"), Trainer()
    with joined(daemon, trainer) as swarm:
        for _ in range(4):
            trainer.step()
        assert trainer.values == {-3.0}  # nothing has waited, nothing was adopted
        assert swarm.round == 4
        daemon.release.set()
        trainer.step()
        # Staged at -2 (delta 3, of which phi takes half): phi = -0.5, and two steps since then.
        assert trainer.values == {-2.5}
        assert swarm.round == 5


def test_the_mean_gradient_is_what_the_optimizer_steps_with(serve: Callable[..., Daemon]) -> None:
    daemon = serve(GRAD, Stream("param", every=10, merge="mean", codec="fp32"), answer=lambda _: "grad", foreign=0.5)
    trainer = Trainer()
    with joined(daemon, trainer):
        trainer.step()
        assert trainer.values == {1.0 - (1.0 + 0.5) / 2}
        assert torch.equal(trainer.model.second.grad, torch.full((7,), 0.75))


def test_an_unused_parameter_gets_the_others_gradient(serve: Callable[..., Daemon]) -> None:
    daemon = serve(GRAD, Stream("param", every=10, merge="mean", codec="fp32"), answer=lambda _: "grad", foreign=0.5)
    trainer = Trainer()
    with joined(daemon, trainer):
        trainer.optimizer.zero_grad()
        trainer.model.first.sum().backward()
        trainer.optimizer.step()
        assert torch.equal(trainer.model.second.detach(), torch.full((7,), 1.0 - 0.25))


def test_a_bfloat16_model_gets_phi_rounded(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(NESTEROV, initial=1 / 3), Trainer(torch.bfloat16)
    with joined(daemon, trainer):
        assert trainer.model.first.dtype == torch.bfloat16
        trainer.step()
        trainer.step()
        phi = daemon.tensors.phi("param")
        assert torch.equal(trainer.model.second.detach(), phi[15:].bfloat16())


def test_the_inner_optimizer_keeps_its_state(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters())
    with joined(daemon, trainer):
        for _ in range(4):
            trainer.step()
    assert trainer.optimizer.state[trainer.model.first]["step"] == 4
    assert trainer.optimizer.state[trainer.model.first]["exp_avg"].any()


def test_moments_that_the_run_exchanges_are_taken_over_with_the_runs_step_count(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(MEAN, replace(MEAN, name="exp_avg", state="exp_avg"), initial=0.25), Trainer()
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters())
    with joined(daemon, trainer):
        for parameter in (trainer.model.first, trainer.model.second):
            assert torch.equal(trainer.optimizer.state[parameter]["exp_avg"], torch.full_like(parameter, 0.25))
            assert trainer.optimizer.state[parameter]["step"] == 8
        trainer.step()
        trainer.step()
        assert {record.stream for record in daemon.of(Contribute)} == {"param", "exp_avg"}
        assert torch.equal(
            daemon.tensors.phi("exp_avg")[:15], trainer.optimizer.state[trainer.model.first]["exp_avg"].flatten()
        )


def test_a_trainer_may_have_a_delay_of_its_own(serve: Callable[..., Daemon]) -> None:
    stream = Stream("param", every=4, delay=2, adopt="mix", merge="mean", codec="fp32")
    daemon, trainer = serve(stream, answer=lambda _: "later"), Trainer()
    daemon.start()
    assert daemon.listening.wait(DEADLINE_S)
    with wantrain.join(trainer.model, trainer.optimizer, daemon=daemon.address, delay=3) as swarm:
        for _ in range(6):
            trainer.step()  # nothing has waited
        assert swarm.waited_s == 0.0
        assert swarm.streams[0] == replace(stream, delay=3)
        daemon.release.set()
        trainer.step()
        assert swarm.round == 5


@pytest.mark.parametrize(("delay", "said"), [(5, "allowed is 0 to 4"), (-1, "allowed is 0 to 4")])
def test_a_delay_beyond_the_round_is_refused(serve: Callable[..., Daemon], delay: int, said: str) -> None:
    daemon, trainer = serve(Stream("param", every=4, delay=2, merge="mean", codec="fp32")), Trainer()
    daemon.start()
    assert daemon.listening.wait(DEADLINE_S)
    with pytest.raises(ConfigError, match=said):
        wantrain.join(trainer.model, trainer.optimizer, daemon=daemon.address, delay=delay)


def test_a_delay_where_the_method_has_none_is_refused(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    daemon.start()
    assert daemon.listening.wait(DEADLINE_S)
    with pytest.raises(ConfigError, match="no delay"):
        wantrain.join(trainer.model, trainer.optimizer, daemon=daemon.address, delay=1)


def test_moments_that_the_optimizer_does_not_keep_are_an_error_of_join(serve: Callable[..., Daemon]) -> None:
    daemon = serve(MEAN, replace(MEAN, name="exp_avg", state="exp_avg"))
    with pytest.raises(ConfigError, match="exp_avg, which SGD does not keep"):
        joined(daemon, Trainer())


def test_a_refused_contribution_is_an_error_of_the_step(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(MEAN, answer=lambda _: "refuse"), Trainer()
    swarm = joined(daemon, trainer)
    trainer.step()
    with pytest.raises(RefusedError, match="NaN in it"):
        trainer.step()
    assert swarm.alone


def test_progress_is_posted_at_every_step(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(Stream("param", every=10, merge="mean", codec="fp32")), Trainer()
    with joined(daemon, trainer):
        for _ in range(3):
            trainer.step()
        assert daemon.tensors.segment is not None
        steps_left, step_s, own_steps = daemon.tensors.segment.progress()
        assert (steps_left, own_steps) == (7, 3)
        assert 0 < step_s < DEADLINE_S


def test_what_is_waited_for_is_told(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer_shell, "SAY_EVERY_S", 0.0)
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer):
        pass
    assert "to join: " in caplog.text


def test_after_the_ceiling_training_goes_on_and_takes_the_result_later(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANTRAIN_WAIT_CEILING_S", "0.05")
    daemon, trainer = serve(MEAN, answer=lambda _: "later"), Trainer()
    with joined(daemon, trainer) as swarm:
        for _ in range(5):
            trainer.step()
        assert "training goes on alone until it comes" in caplog.text
        assert trainer.values == {-4.0}
        assert swarm.round == 4
        daemon.release.set()
        until(lambda: daemon.tensors.segment.granted == 2, "grant")
        steps = 5
        while swarm.round < 5:  # the announcement may be there a little before the message
            assert steps < 1000
            trainer.step()
            steps += 1
        assert trainer.values == {1.0 - steps}


def test_when_the_daemon_is_lost_training_goes_on_alone(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer_shell, "LOST_PATIENCE_S", 0.2)
    daemon, trainer = serve(MEAN), Trainer()
    others: list[int] = []
    with joined(daemon, trainer) as swarm:
        # A hook behind ours must still be called in the step that finds the daemon gone.
        trainer.optimizer.register_step_post_hook(lambda *_: others.append(1))
        trainer.step()
        daemon.stop()
        trainer.step()
        assert swarm.alone
        trainer.step()
        swarm.log(loss=1.0)
        assert trainer.values == {-2.0}
        assert len(others) == 3
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1


def test_a_daemon_that_is_lost_between_syncs_is_noticed(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_shell, "LOST_PATIENCE_S", 0.1)
    monkeypatch.setattr(trainer_shell, "LOOK_EVERY_S", 0.0)
    daemon, trainer = serve(Stream("param", every=10**6, merge="mean", codec="fp32")), Trainer()
    with joined(daemon, trainer) as swarm:
        daemon.stop()
        until(lambda: swarm.alone, "notice", trainer.step)


# ---- logging, leaving, data


def test_the_newest_numbers_reach_the_daemon_merged(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_shell, "LOG_EVERY_S", 1000.0)
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm:
        for step in range(1000):
            swarm.log(loss=torch.tensor(step), tokens=step)
        swarm.log(accuracy=0.5)
        swarm.tokens(5)
    merged: dict[str, float] = {}
    for log in daemon.of(Log):
        merged |= log.values
    assert merged == {"loss": 999.0, "tokens": 1004.0, "accuracy": 0.5}
    assert len(daemon.of(Log)) == 2


def test_any_number_of_names_reaches_the_daemon_in_messages_that_it_takes(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls of 40 names within 0.2 s: none is too large."""
    monkeypatch.setattr(trainer_shell, "LOG_EVERY_S", 1000.0)
    daemon, trainer = serve(MEAN), Trainer()
    numbers = {f"name {k}": float(k) for k in range(80)}
    with joined(daemon, trainer) as swarm:
        swarm.log(first=1.0)  # goes at once, what follows is kept
        for _ in range(2):
            swarm.log(**dict(list(numbers.items())[:40]))
            swarm.log(**dict(list(numbers.items())[40:]))
        monkeypatch.setattr(trainer_shell, "LOG_EVERY_S", 0.0)
        trainer.step()
        until(lambda: len(daemon.of(Log)) == 3, "numbers")
        monkeypatch.setattr(trainer_shell, "LOG_EVERY_S", 1000.0)
        swarm.log(**{name: number + 1 for name, number in list(numbers.items())[:40]})
        swarm.log(**{name: number + 1 for name, number in list(numbers.items())[40:]})
    sent = [log.values for log in daemon.of(Log)]
    assert sent[1] | sent[2] == numbers
    assert sent[3] | sent[4] == {name: number + 1 for name, number in numbers.items()}
    assert len(sent) == 5


def test_a_call_with_too_many_names_is_refused_and_stores_nothing(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm:
        with pytest.raises(ConfigError, match="65 names at once, at most 64"):
            swarm.log(**{f"name {k}": k for k in range(65)})
        with pytest.raises(ConfigError, match="allowed are numbers"):
            swarm.log(good=1.0, bad="low")
        swarm.log(loss=1.0)
    assert [log.values for log in daemon.of(Log)] == [{"loss": 1.0}]


def test_while_the_daemon_is_away_the_names_that_were_logged_last_are_kept(
    serve: Callable[..., Daemon], caplog: pytest.LogCaptureFixture
) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm:
        swarm._away = True
        swarm.log(early=1.0, loss=1.0)
        for k in range(trainer_shell.MAX_KEPT):
            swarm.log(**{f"name {k}": k, "loss": k})
        swarm._away = False
    merged = {name for log in daemon.of(Log) for name in log.values}
    assert merged == {"loss", *(f"name {k}" for k in range(1, trainer_shell.MAX_KEPT))}
    assert caplog.text.count("more than 256 names are logged: early") == 1


@pytest.mark.parametrize("name", ["n" * 129, "not utf-8 \udcff"])
def test_a_name_that_the_daemon_would_not_take_cannot_be_logged(serve: Callable[..., Daemon], name: str) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm, pytest.raises(ConfigError, match="allowed are up to 128 printable"):
        swarm.log(**{name: 1.0})


def test_tokens_are_counted_into_contributions(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(Stream("param", every=1, merge="mean", codec="fp32", weight="tokens")), Trainer()
    with joined(daemon, trainer) as swarm:
        for _ in range(3):
            swarm.tokens(512)
            trainer.step()
    assert [c.tokens for c in daemon.of(Contribute)] == [512, 1024, 1536]


def test_a_stream_weighed_by_tokens_needs_them(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(Stream("param", every=1, merge="mean", codec="fp32", weight="tokens")), Trainer()
    swarm = joined(daemon, trainer)
    with pytest.raises(ConfigError, match="none were counted"):
        trainer.step()
    swarm.close()


@pytest.mark.parametrize("numbers", [{"loss": "low"}, {"loss": None}, {"loss": torch.zeros(2)}, {"tokens": -1}])
def test_only_numbers_can_be_logged(serve: Callable[..., Daemon], numbers: dict[str, Any]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm, pytest.raises(ConfigError, match="allowed are"):
        swarm.log(**numbers)


def test_a_loss_of_nan_is_told_and_not_sent(serve: Callable[..., Daemon], caplog: pytest.LogCaptureFixture) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm:
        swarm.log(loss=float("nan"), other=1.0)
    assert "loss is nan" in caplog.text
    assert daemon.of(Log)[0].values == {"other": 1.0}


def test_leaving_says_so_and_takes_the_hooks_away(serve: Callable[..., Daemon]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    swarm = joined(daemon, trainer)
    trainer.step()
    swarm.leave()
    assert len(daemon.of(Detach)) == 1
    trainer.step()
    trainer.step()
    assert trainer.values == {-2.0}
    assert daemon.of(Contribute) == []
    swarm.leave()
    assert len(daemon.of(Detach)) == 1


def test_an_error_in_the_loop_is_not_a_leave(serve: Callable[..., Daemon]) -> None:
    daemon = serve(MEAN)
    with pytest.raises(ZeroDivisionError), joined(daemon, Trainer()):
        raise ZeroDivisionError
    daemon.stop()
    assert daemon.of(Detach) == []


# ---- a daemon that is killed and started again


def grown(daemon: Daemon) -> Callable[[Record], list[Record]]:
    """How a daemon reacts that takes over what a former one has left: it knows the trainer by its segment."""
    react = daemon.react

    def answer(record: Record) -> list[Record]:
        if isinstance(record, Attach) and record.segment:
            daemon.manifest, daemon.engine = record.manifest, Engine(record.manifest, daemon.streams)
            daemon.engine.resume_segment(record.segment)
            daemon.engine.phi(daemon.streams[0].name).fill_(daemon.initial)
            rows = tuple(asdict(stream) for stream in daemon.streams)
            return [Attached("p" * 52, "berlin", record.segment, rows, False)]
        return react(record)

    return answer


def test_a_daemon_that_is_started_again_gets_the_trainer_as_it_is(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer_shell, "LOST_PATIENCE_S", 0.2)
    monkeypatch.setattr(trainer_shell, "LOOK_EVERY_S", 0.0)

    def dies(_: Contribute) -> str:
        first.stopping.set()
        return "later"

    first, trainer = serve(MEAN, answer=dies), Trainer()
    with joined(first, trainer) as swarm:
        for _ in range(2):
            trainer.step()  # staged with the weights at -1, taken in, and not answered
        first.stop()
        for _ in range(3):
            trainer.step()
        assert swarm.alone
        assert trainer.values == {-4.0}

        second = serve(MEAN, answer=lambda _: "merge", initial=5.0)
        monkeypatch.setattr(second, "react", grown(second))
        second.start()
        until(lambda: not swarm.alone, "answer", trainer.step)
        until(lambda: swarm.round > 4, "grant", trainer.step)
        (attach, *_) = second.of(Attach)
        assert attach.received == {"param": 1}
        assert attach.indices == {"param": 4}
        assert second.of(Contribute)[0] == first.of(Contribute)[0]
        assert first.of(Attach)[0].boot == attach.boot
        assert "is back: training goes on with the run" in caplog.text
        made = swarm._core.step
    # 1 was handed out, -1 staged; the mean of one is -1, whatever phi the new daemon had: its update moves that by 2.
    assert trainer.values == {5.0 - 2.0 - (made - 2)}


def test_a_daemon_that_cannot_go_on_gives_the_runs_weights_anew(
    serve: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer_shell, "LOST_PATIENCE_S", 0.2)
    monkeypatch.setattr(trainer_shell, "LOOK_EVERY_S", 0.0)
    quiet = Stream("param", every=10**6, merge="mean", codec="fp32")
    first, trainer = serve(quiet), Trainer()
    with joined(first, trainer) as swarm:
        trainer.step()
        first.stop()
        (first.folder / "segment").rename(first.folder / "former")
        second = serve(quiet, initial=50.0)
        second.folder = first.folder / "second"
        second.folder.mkdir()
        second.start()
        until(lambda: second.of(Attach), "question", trainer.step)
        until(lambda: trainer.values <= set(range(51)), "weights of the run", trainer.step)
        assert "starts again from the run's weights" in caplog.text
        assert not swarm.alone
