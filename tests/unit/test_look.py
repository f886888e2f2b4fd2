"""A look at the run's common weights while training goes on, and what a trainer puts into a checkpoint of its own."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import wantrain
from tests.unit.test_session import DEADLINE_S, MEAN, Daemon, Model, Trainer, joined, served
from wantrain.errors import CheckpointError, ConfigError, UnreachableError, WantrainError
from wantrain.optimizers.stream import Stream
from wantrain.peers.messages import Common, Contribute, Record, WantCommon

DELAYED = Stream("param", every=4, delay=3, merge="mean", codec="fp32")
MASKED = tuple(Stream(f"param-{k}", fragment=f"mask:{k}/3", every=6, offset=2 * k, codec="fp32") for k in range(3))
FRAGMENTS = (
    Stream("param", every=2, merge="mean", codec="fp32"),
    Stream("moment", state="exp_avg", every=4, merge="mean", codec="fp32"),
)


class Showing(Daemon):
    """A daemon that lays down the common weights when it is asked, or says why it cannot."""

    flaw = ""
    silent = False

    def react(self, record: Record) -> list[Record]:
        if not isinstance(record, WantCommon):
            return super().react(record)
        if self.silent:
            return []
        path = self.folder / f"phi-{record.serial}"
        if self.flaw:
            return [Common(record.serial, "", 0, 0, 0, self.flaw)]
        for stream, chunks in self.tensors.open_common(path).items():
            for chunk in range(chunks):
                self.tensors.copy_common(stream, chunk)
        self.tensors.drop_common()
        return [Common(record.serial, str(path), 11, 5, 9)]


@pytest.fixture
def serve() -> Iterator[Callable[..., Showing]]:
    with served(Showing) as make:
        yield make


def values(model: Model) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def distinct(daemon: Showing) -> dict[str, Tensor]:
    """Make phi something that is different everywhere, and not in bf16; what it is, by name."""
    whole = torch.arange(22, dtype=torch.float32) + 1 / 3
    for stream in daemon.streams:
        if stream.state == "param" and stream.fragment == "all":
            daemon.tensors.phi(stream.name).copy_(whole)
    return {"first": whole[:15].view(3, 5), "second": whole[15:]}


@pytest.mark.parametrize("streams", [(MEAN,), (DELAYED,), FRAGMENTS], ids=["plain", "delayed", "moments"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_within_the_model_is_phi_and_afterwards_what_it_was(
    serve: Callable[..., Showing], streams: tuple[Stream, ...], dtype: torch.dtype
) -> None:
    daemon, trainer = serve(*streams), Trainer(dtype)
    if len(streams) > 1:
        trainer.optimizer = torch.optim.Adam(trainer.model.parameters(), lr=1.0)  # type: ignore[assignment]
    with joined(daemon, trainer) as swarm:
        trainer.step()
        phi = distinct(daemon)
        own, frozen = values(trainer.model), trainer.model.frozen
        with swarm.evaluating() as shown:
            assert torch.equal(trainer.model.first, phi["first"].to(dtype))
            assert torch.equal(trainer.model.second, phi["second"].to(dtype))
            assert (shown.round, shown.global_step, shown.number) == (5, 9, 11)
        assert same(own, values(trainer.model))
        assert trainer.model.frozen is frozen
        common = swarm.common_state_dict()
        assert {name: tensor.dtype for name, tensor in common.items()} == dict.fromkeys(phi, torch.float32)
        assert all(torch.equal(common[name], phi[name]) for name in phi)
        trainer.step()  # training goes on
        assert list(daemon.folder.glob("phi-*")) == []


def test_masks_of_coordinates_come_together_to_one_model(serve: Callable[..., Showing]) -> None:
    daemon, trainer = serve(*MASKED), Trainer()
    with joined(daemon, trainer) as swarm:
        for k, stream in enumerate(MASKED):
            daemon.tensors.phi(stream.name).fill_(float(k))
        own = values(trainer.model)
        common = torch.cat([tensor.flatten() for tensor in swarm.common_state_dict().values()])
        assert sorted(common.unique().tolist()) == [0.0, 1.0, 2.0]
        with swarm.evaluating():
            within = torch.cat([trainer.model.first.flatten(), trainer.model.second]).detach()
            assert torch.equal(within, common)
        assert same(own, values(trainer.model))


def test_a_result_that_comes_meanwhile_is_taken_over_afterwards(serve: Callable[..., Showing]) -> None:
    daemon, trainer = serve(DELAYED, answer=lambda _: "later"), Trainer()
    with joined(daemon, trainer) as swarm:
        for _ in range(4):
            trainer.step()
        own = values(trainer.model)
        daemon.release.set()
        with swarm.evaluating():
            pass
        swarm.common_state_dict()
        assert same(own, values(trainer.model))
        assert swarm.round == 4
        for _ in range(3):
            trainer.step()
        assert swarm.round == 5


def test_within_it_nothing_may_change_the_model(serve: Callable[..., Showing]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer) as swarm:
        own = values(trainer.model)
        samples = swarm.shard(range(5))
        with swarm.evaluating():
            for forbidden in (
                trainer.step,
                lambda: next(samples),
                swarm.common_state_dict,
                swarm.evaluating().__enter__,
            ):
                with pytest.raises(ConfigError, match="within `with swarm.evaluating"):
                    forbidden()
        assert same(own, values(trainer.model))
        with pytest.raises(ZeroDivisionError), swarm.evaluating():
            raise ZeroDivisionError
        assert same(own, values(trainer.model))


def test_a_gossip_run_has_no_common_weights(serve: Callable[..., Showing]) -> None:
    stream = Stream("param", every=2, topology="pair", merge="noloco", codec="fp32")
    with joined(serve(stream), Trainer()) as swarm:
        with pytest.raises(ConfigError, match="every peer has weights of its own"):
            swarm.common_state_dict()
        with pytest.raises(ConfigError, match="evaluate the model as it is"), swarm.evaluating():
            pass


def test_without_an_answer_it_says_what_was_waited_for(
    serve: Callable[..., Showing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANTRAIN_WAIT_CEILING_S", "0.3")
    daemon, trainer = serve(MEAN), Trainer()
    daemon.silent = True
    with joined(daemon, trainer) as swarm:
        with pytest.raises(UnreachableError, match="gave no common weights"):
            swarm.common_state_dict()
        trainer.step()
        daemon.silent, daemon.flaw = False, "4.0 MiB of shared memory are needed"
        with pytest.raises(WantrainError, match="4.0 MiB of shared memory"):
            swarm.common_state_dict()


def test_a_lost_daemon_gives_none(serve: Callable[..., Showing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wantrain.trainer_shell.LOST_PATIENCE_S", 0.1)
    daemon, trainer = serve(MEAN), Trainer()
    swarm = joined(daemon, trainer)
    daemon.stop()
    with pytest.raises(UnreachableError, match="it is gone"):
        swarm.common_state_dict()
    swarm.close()


# ---- what goes into a checkpoint


def through_json(state: dict[str, Any]) -> Any:
    return json.loads(json.dumps(state))


def through_torch(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save({"swarm": state}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["swarm"]


@pytest.mark.parametrize("through", [through_json, through_torch])
def test_the_counts_of_a_checkpoint_go_on(serve: Callable[..., Showing], through: Callable[[Any], Any]) -> None:
    stream = Stream("param", every=2, merge="mean", codec="fp32", weight="tokens")
    daemon = serve(stream)
    with joined(daemon, Trainer()) as swarm:
        swarm.run = "8450f28fac6b0689"
        swarm.tokens(500)
        state = swarm.state_dict()
    assert state == {
        "run": "8450f28fac6b0689", "peer": "berlin", "round": 4, "global_step": 8, "own_steps": 0, "tokens": 500
    }  # fmt: skip
    state["own_steps"] = 70
    trainer = Trainer()
    with wantrain.join(trainer.model, trainer.optimizer, daemon=daemon.address) as swarm:
        swarm.run = "8450f28fac6b0689"
        swarm.load_state_dict(through(state))
        assert (swarm.own_steps, swarm.state_dict()["tokens"]) == (70, 500)
        for _ in range(2):
            swarm.tokens(8)
            trainer.step()
        assert (swarm.own_steps, swarm.state_dict()["tokens"]) == (72, 516)
        with pytest.raises(ConfigError, match="after 2 inner steps"):
            swarm.load_state_dict(state)
    (offer,) = daemon.of(Contribute)
    assert offer.tokens == 16  # what the former process was trained on counts in no contribution of this one


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "0" * 16}, "takes part in"),
        ({"tokens": -1}, "tokens in the state is -1"),
        ({"own_steps": "7"}, "own_steps in the state is '7'"),
        ({"tokens": None}, "tokens in the state is None"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    serve: Callable[..., Showing], changes: dict[str, Any], words: str
) -> None:
    with joined(serve(MEAN), Trainer()) as swarm:
        with pytest.raises(CheckpointError, match=words):
            swarm.load_state_dict(swarm.state_dict() | changes)
        with pytest.raises(CheckpointError, match="tokens not in it"):
            swarm.load_state_dict({"run": "", "own_steps": 1})


# ---- joining twice


def test_a_second_join_says_what_to_do_first(serve: Callable[..., Showing]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    with joined(daemon, trainer):
        other = Trainer()
        with pytest.raises(ConfigError, match="already as berlin") as caught:
            wantrain.join(other.model, other.optimizer, daemon=daemon.address)
        assert "swarm.leave()" in caught.value.hint
        trainer.step()
    with wantrain.join(trainer.model, trainer.optimizer, daemon=daemon.address) as swarm:
        assert not swarm.closed
    assert swarm.closed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"invite": "wantrain://x", "daemon": "ipc:///x"}, "both invite and daemon"),
        ({"daemon": "ipc:///x", "peer_options": {"name": "b"}}, "runs already"),
        ({"daemon": "ipc:///nowhere"}, "no peer daemon at ipc:///nowhere"),
        ({"invite": "wantrain://x"}, "invite is cut off"),
        ({"invite": "http://x"}, "is not an invite"),
    ],
)
def test_what_cannot_be_joined_is_said_at_once(options: dict[str, Any], words: str) -> None:
    trainer = Trainer()
    with pytest.raises(WantrainError, match=words):
        wantrain.join(trainer.model, trainer.optimizer, **options)


def test_the_environment_names_a_daemon_before_an_invite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANTRAIN_INVITE", "http://x")
    trainer = Trainer()
    monkeypatch.setenv("WANTRAIN_DAEMON", "ipc:///nowhere")
    with pytest.raises(UnreachableError):
        wantrain.join(trainer.model, trainer.optimizer)
    monkeypatch.delenv("WANTRAIN_DAEMON")
    with pytest.raises(WantrainError, match="is not an invite"):
        wantrain.join(trainer.model, trainer.optimizer)


def test_join_works_beside_other_threads_of_this_process(serve: Callable[..., Showing]) -> None:
    daemon, trainer = serve(MEAN), Trainer()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with joined(daemon, trainer) as swarm:
                trainer.step()
                swarm.common_state_dict()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE_S)
    assert (failures, thread.is_alive()) == ([], False)


def test_an_unused_answer_leaves_no_file(serve: Callable[..., Showing]) -> None:
    daemon = serve(MEAN)
    with joined(daemon, Trainer()) as swarm:
        path = daemon.folder / "late"
        path.write_bytes(b"x")
        swarm._look.came(Common(99, str(path), 1, 1, 1))
        assert not path.exists()
