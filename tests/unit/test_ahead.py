"""Contributions that are answered before their sync is decided: `eager` and `delayed` by equations, and by events.

The equations are arXiv 2502.12996's: delayed phi <- Outer(phi, D_mean(t-1)), eager phi_m <- Outer_m(phi_m, D_mean(t-1)
+ (D_m(t) - D_m(t-1)) / M) with a state of its own for each peer.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.test_participant import One, joined, line, of, told
from wantrain.optimizers.method import build
from wantrain.optimizers.stream import Stream, Wire
from wantrain.peers.effects import Apply, Effect, Grant, Settle, UseStage
from wantrain.peers.engine import Engine
from wantrain.peers.events import TrainerAttached
from wantrain.peers.messages import CommitRecord, Report, Result, SyncId, TensorSpec

torch.set_num_threads(1)

SIZE = 16384 + 77
MANIFEST = (TensorSpec("w", (SIZE,), "float32"),)
LR, MU = 0.4, 0.9
Train = Callable[[int, Tensor, int], Tensor]
"""From peer, starting weights and round to the weights at the round's end."""


def stream_of(method: str, **options: object) -> Stream:
    given = {"every": 5, "outer_lr": LR, "momentum": MU, **options}
    (stream,) = build(method, given, Wire("fp32"))
    return stream


class Peers:
    """M engines through rounds; the exchange is a mean over those named."""

    def __init__(self, folder: Path, stream: Stream, peers: int) -> None:
        self.stream, self.engines = stream, [Engine(MANIFEST, (stream,)) for _ in range(peers)]
        self.ahead = stream.answer != "result"
        self.syncs = 0
        for k, engine in enumerate(self.engines):
            segment = engine.open_segment(folder / f"{stream.answer}-{peers}-{k}-{stream.merge}")
            segment.out("param").copy_(initial())
            engine.adopt_genesis()
            engine.grant("param", "start")

    def given(self, k: int) -> Tensor:
        """fp32[SIZE]: where peer k goes on from."""
        segment = self.engines[k].segment
        assert segment is not None
        return segment.given("param").clone()

    def contribute(self, k: int, theta: Tensor) -> None:
        engine = self.engines[k]
        assert engine.segment is not None
        engine.segment.out("param").copy_(theta)
        engine.stage("param")
        engine.use_stage("param")
        if self.ahead:
            engine.grant("param", "merge", share=1.0 / len(self.engines))

    def sync(self, *inside: int) -> Tensor:
        """fp32[SIZE]: the mean that all have applied."""
        chosen = inside or tuple(range(len(self.engines)))
        self.syncs += 1
        first, others = self.engines[chosen[0]], [self.engines[k] for k in chosen[1:]]
        chunks = range(len(first._vectors["param"].bounds))
        parts = {k: [(1.0, other.part("param", k)) for other in others] for k in chunks}
        update = [first.reduce("param", k, [(1.0, None), *parts[k]], float(len(chosen)), True) for k in chunks]
        for k, engine in enumerate(self.engines):
            engine.settle("param", k in chosen)
            engine.apply("param", update, index=self.syncs)
            if not self.ahead:
                engine.grant("param", "merge")
        return torch.cat([torch.frombuffer(chunk, dtype=torch.float32) for chunk in update])

    def rounds(self, count: int, train: Train) -> list[Tensor]:
        """fp32[peers, SIZE] after each round: where every peer goes on from."""
        seen = []
        for t in range(count):
            starts = [self.given(k) for k in range(len(self.engines))]
            for k, start in enumerate(starts):
                self.contribute(k, train(k, start, t))
            if self.ahead:
                seen.append(torch.stack([self.given(k) for k in range(len(self.engines))]))
                self.sync()
            else:
                self.sync()
                seen.append(torch.stack([self.given(k) for k in range(len(self.engines))]))
        return seen


def initial() -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(0))


def bowl(k: int, start: Tensor, t: int) -> Tensor:
    """Five steps of gradient descent on a bowl of peer k's own, with noise of the round."""
    centre = torch.randn(SIZE, generator=torch.Generator().manual_seed(100 + k))
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(1000 + 31 * t + k))
    theta = start.clone()
    for _ in range(5):
        theta = theta - 0.05 * (theta - centre + 0.1 * noise)
    return theta


def outer(phi: Tensor, b: Tensor, delta: Tensor, nesterov: bool) -> tuple[Tensor, Tensor]:
    b = MU * b + delta
    return phi - LR * (delta + MU * b if nesterov else b), b


@pytest.mark.parametrize("nesterov", [True, False])
def test_eager_of_one_peer_is_diloco_bit_for_bit(tmp_path: Path, nesterov: bool) -> None:
    eager = Peers(tmp_path, stream_of("eager", nesterov=nesterov), 1)
    diloco = Peers(tmp_path, stream_of("diloco", nesterov=nesterov), 1)
    for ours, theirs in zip(eager.rounds(8, bowl), diloco.rounds(8, bowl), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(eager.engines[0].phi("param"), diloco.engines[0].phi("param"))


@pytest.mark.parametrize("nesterov", [True, False])
def test_eager_follows_the_paper_with_a_state_for_each_peer(tmp_path: Path, nesterov: bool) -> None:
    peers = 3
    seen = Peers(tmp_path, stream_of("eager", nesterov=nesterov), peers).rounds(8, bowl)
    phi, b = [initial().double()] * peers, [torch.zeros(SIZE, dtype=torch.float64)] * peers
    mean, own = torch.zeros(SIZE, dtype=torch.float64), [torch.zeros(SIZE, dtype=torch.float64)] * peers
    for t in range(8):
        deltas = [phi[k] - bowl(k, phi[k].float(), t).double() for k in range(peers)]
        stepped = [outer(phi[k], b[k], mean + (deltas[k] - own[k]) / peers, nesterov) for k in range(peers)]
        phi, b = [p for p, _ in stepped], [q for _, q in stepped]
        mean, own = sum(deltas, torch.zeros(SIZE, dtype=torch.float64)) / peers, deltas
        torch.testing.assert_close(seen[t].double(), torch.stack(phi), rtol=1e-5, atol=1e-5)


def test_delayed_steps_with_the_mean_of_the_round_before(tmp_path: Path) -> None:
    peers = 3
    seen = Peers(tmp_path, stream_of("delayed"), peers).rounds(8, bowl)
    phi, b = initial().double(), torch.zeros(SIZE, dtype=torch.float64)
    mean: Tensor | None = None
    for t in range(8):
        deltas = [phi - bowl(k, phi.float(), t).double() for k in range(peers)]
        if mean is not None:
            phi, b = outer(phi, b, mean, True)
        mean = sum(deltas, torch.zeros(SIZE, dtype=torch.float64)) / peers
        torch.testing.assert_close(seen[t].double(), phi.expand(peers, SIZE), rtol=1e-5, atol=1e-5)


def test_with_constant_differences_all_make_the_same_steps_after_the_start(tmp_path: Path) -> None:
    step = torch.full((SIZE,), 0.01)
    moved = {}
    for method in ("diloco", "delayed", "eager"):
        seen = Peers(tmp_path, stream_of(method), 2).rounds(120, lambda k, start, t: start - step)
        moved[method] = (seen[-1] - seen[-2]) / step
        assert torch.equal(seen[-1][0], seen[-1][1])
    for steps in moved.values():
        torch.testing.assert_close(steps, torch.full((2, SIZE), -LR / (1 - MU)), rtol=2e-3, atol=0)


def test_phi_is_common_whatever_the_guesses_are(tmp_path: Path) -> None:
    peers = Peers(tmp_path, stream_of("eager"), 3)
    seen = peers.rounds(4, bowl)
    assert not torch.equal(seen[-1][0], seen[-1][1])
    assert len({engine.state_digest() for engine in peers.engines}) == 1


@pytest.mark.parametrize(("late", "kept"), [("rebase", 2), ("adopt", 1)])
def test_what_missed_its_sync_is_in_the_next_one_once_or_dropped(tmp_path: Path, late: str, kept: int) -> None:
    peers = Peers(tmp_path, stream_of("delayed", late=late), 2)
    means = []
    for inside in ((0,), (0, 1), (0, 1)):
        for k in range(2):
            peers.contribute(k, peers.given(k) - (k + 1.0))
        means.append(peers.sync(*inside))
    assert [round(mean[0].item(), 4) for mean in means] == [1.0, (1 + 2 * kept) / 2, (1 + 2) / 2]


def test_what_a_trainer_that_is_gone_has_left_is_not_added_to_its_successors(tmp_path: Path) -> None:
    peers = Peers(tmp_path, stream_of("delayed"), 2)
    for k in range(2):
        peers.contribute(k, peers.given(k) - (k + 1.0))
    peers.engines[1].open_segment(tmp_path / "successor")
    peers.sync(0)
    peers.engines[1].grant("param", "start")
    for k in range(2):
        peers.contribute(k, peers.given(k) - (k + 1.0))
    assert peers.sync()[0].item() == pytest.approx(1.5)


def test_what_was_in_use_when_its_history_was_over_is_not_added_to_the_next_contribution(tmp_path: Path) -> None:
    peers = Peers(tmp_path, stream_of("delayed"), 2)
    for k in range(2):
        peers.contribute(k, peers.given(k) - (k + 1.0))
    peers.engines[1].forget_residuals()
    peers.sync(0)
    peers.engines[1].grant("param", "start")
    for k in range(2):
        peers.contribute(k, peers.given(k) - (k + 1.0))
    assert peers.sync()[0].item() == pytest.approx(1.5)


def test_a_contribution_is_not_touched_by_the_rounds_that_follow(tmp_path: Path) -> None:
    peers = Peers(tmp_path, stream_of("eager"), 1)
    peers.contribute(0, peers.given(0) - 1.0)
    engine = peers.engines[0]
    before = bytes(engine.part("param", 0))
    assert engine.segment is not None
    engine.segment.out("param").fill_(7.0)
    engine.stage("param")
    assert bytes(engine.part("param", 0)) == before


def test_the_memory_is_what_is_said(tmp_path: Path) -> None:
    """fp32 sizes of the model: out, given, phi, momentum; the contribution; for a guess a momentum of its own."""
    sizes = {}
    for method in ("diloco", "delayed", "eager"):
        peers = Peers(tmp_path, stream_of(method), 1)
        sizes[method] = peers.engines[0].expected_bytes
        peers.contribute(0, peers.given(0))
        assert peers.engines[0].resident_bytes <= sizes[method]
    assert [sizes[method] - sizes["diloco"] for method in ("delayed", "eager")] == [4 * SIZE, 8 * SIZE]


# ---- the order of things

AHEAD = Stream("param", every=10, answer="delayed")
LIVE = Stream("param", every=10, answer="eager")


def kinds(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects if isinstance(effect, UseStage | Grant | Settle | Apply)]


def commits(one: One, number: int, *contributors: str) -> list[Effect]:
    """Sync `number` is moved with this peer as a contributor, and committed as the log has it."""
    one.start(4 + number, "bm", index=number)
    digest = line(number).digest
    sync = SyncId("param", number, 4 + number)
    one.hear(Result(sync, (0,)), "b", "sum", bytes([number]) * 32)
    record = line(number, attempt=4 + number)
    return one.commit(CommitRecord(number, sync, contributors, (1.0,) * len(contributors), digest, record.chain))


def test_a_contribution_is_answered_at_once_and_reported_then() -> None:
    one = joined(AHEAD)
    effects = one.stage()
    assert kinds(effects) == ["UseStage", "Grant"]
    assert of(Grant, effects) == [Grant("param", "merge", 1, 0, 10, share=1 / 3)]
    assert [sync.phase for sync in told(Report, effects)[-1].syncs] == ["ready"]


def test_the_next_one_is_answered_when_the_one_before_is_decided() -> None:
    one = joined(AHEAD)
    one.stage(1)
    assert kinds(one.stage(2)) == []
    effects = commits(one, 1, "b", "me")
    assert kinds(effects) == ["Settle", "Apply", "UseStage", "Grant"]
    assert of(Settle, effects) == [Settle("param", True)]
    assert of(Grant, effects) == [Grant("param", "merge", 2, 1, 20, share=0.5)]
    assert one.core.takes_stage(b"trainer1", "param")


def test_a_decided_one_is_not_answered_again_and_the_next_goes_into_the_next_sync() -> None:
    one = joined(AHEAD)
    one.stage(1)
    assert kinds(commits(one, 1, "b", "me")) == ["Settle", "Apply"]
    assert kinds(one.stage(2)) == ["UseStage", "Grant"]
    assert of(Settle, commits(one, 2, "b")) == [Settle("param", False)]


def test_nobody_stages_a_third_one() -> None:
    one = joined(AHEAD)
    one.stage(1)
    assert one.core.takes_stage(b"trainer1", "param")
    one.stage(2)
    assert not one.core.takes_stage(b"trainer1", "param")


def test_the_share_is_that_of_the_last_sync_or_one_more_than_took_part() -> None:
    one = joined(LIVE)
    one.stage(1)
    commits(one, 1, "b", "c", "me")
    assert of(Grant, one.stage(2))[0].share == pytest.approx(1 / 3)
    commits(one, 2, "b", "c")
    assert of(Grant, one.stage(3))[0].share == pytest.approx(1 / 3)
    commits(one, 3, "b")
    assert of(Grant, one.stage(4))[0].share == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("weight", "late", "counts"), [("tokens", "rebase", 2), ("tokens", "adopt", 1), ("equal", "rebase", 1)]
)
def test_what_missed_its_sync_weighs_in_the_next_one(weight: str, late: str, counts: int) -> None:
    one = joined(replace(AHEAD, weight=weight, late=late))
    one.stage(1)
    commits(one, 1, "b")
    (line_,) = told(Report, one.stage(2))[-1].syncs
    assert line_.weight == counts
    commits(one, 2, "b", "me")
    (line_,) = told(Report, one.stage(3))[-1].syncs
    assert line_.weight == 1


def test_another_trainer_waits_for_what_its_predecessor_had_staged() -> None:
    one = joined(AHEAD)
    one.stage(1)
    one.do(TrainerAttached(b"trainer2", (TensorSpec("w", (10,), "float32"),)))
    assert kinds(one.stage(1, b"trainer2")) == []
    effects: list[Any] = commits(one, 1, "b", "me")
    assert kinds(effects) == ["Settle", "Apply", "UseStage", "Grant"]
