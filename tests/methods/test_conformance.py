"""What every method must keep, whatever it exchanges: one suite over the table of methods, through `wantrain.sim`."""

import pytest
import torch

from tests.methods.table import LR, ROWS, Row, codec_bytes, constant, equal, members, regression, slope
from wantrain.optimizers.method import METHODS
from wantrain.sim import Join, Kill, Leave, Pace, Restart, Result

rows = pytest.mark.parametrize("row", ROWS, ids=str)
exact = pytest.mark.parametrize("row", [row for row in ROWS if row.exact], ids=str)
averaged = pytest.mark.parametrize("row", [row for row in ROWS if row.exact and row.common], ids=str)
gossiping = pytest.mark.parametrize("row", [row for row in ROWS if not row.common], ids=str)
common = pytest.mark.parametrize("row", [row for row in ROWS if row.common], ids=str)
averaging = pytest.mark.parametrize("row", [row for row in ROWS if row.averages], ids=str)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_every_method_has_a_row() -> None:
    assert {row.method for row in ROWS} == set(METHODS)


@exact
def test_a_worker_alone_makes_what_the_formula_says(row: Row) -> None:
    """M = 1: the outer rule on differences that are known exactly."""
    rounds = 4
    result = row.train(constant(), peers=1, steps=rounds * row.every)
    delta = torch.full((7,), LR * row.every * slope(0))
    expected = row.outer(torch.zeros(7), [delta] * rounds)
    assert torch.allclose(result.state_dict["0"].double(), expected, rtol=1e-6)
    assert result.sync_bytes == 0


@averaging
def test_a_worker_alone_without_an_outer_optimizer_is_plain_training(row: Row) -> None:
    """M = 1 and an outer rule that goes where the worker went: nothing but rounding is between it and a plain loop."""
    steps = 6 * row.every
    result = row.train(regression(), peers=1, steps=steps)
    torch.manual_seed(0)
    plain = regression()(0)
    torch.manual_seed(1_000_003)
    losses = [float(plain.step()) for _ in range(steps)]
    assert result.workers[0].losses == pytest.approx(losses, rel=1e-4)
    for name, parameter in plain.model.named_parameters():
        assert torch.allclose(result.state_dict[name], parameter, atol=1e-5)


@averaged
def test_the_mean_is_over_the_contributors_of_that_sync(row: Row) -> None:
    """Not over the world: one worker leaves, one is killed in the middle of a sync, and the divisor follows."""
    rounds = 7
    churn = [Leave(2.5 * row.every, worker=1), Kill(worker=3, sync=5)]
    result = row.train(constant(), peers=4, steps=rounds * row.every, churn=churn)
    syncs = [commit for commit in result.commits if commit.sync.stream == row.lead]
    assert [len(commit.contributors) for commit in syncs] == [4, 4, 3, 3, 2, 2, 2]
    deltas = [
        torch.full((7,), LR * row.every * sum(map(slope, who)) / len(who))
        for who in (members(commit.contributors) for commit in syncs)
    ]
    if row.gradients:  # who takes part in a step decides, not who takes part in the average of the weights
        steps = [members(commit.contributors) for commit in result.commits if commit.sync.stream == "grad"]
        assert len(steps) == rounds * row.every
        deltas = [torch.full((7,), LR * sum(map(slope, who)) / len(who)) for who in steps]
    expected = row.outer(torch.zeros(7), deltas)
    assert torch.allclose(result.state_dict["0"].double(), expected, rtol=1e-6)


@gossiping
def test_the_mean_of_all_replicas_is_conserved(row: Row) -> None:
    """Whoever meets whom: the mean of all phi moves as the outer rule on the mean difference says."""
    rounds = 6
    result = row.train(constant(), peers=4, steps=rounds * row.every, evaluate=lambda model: float(model[0][0]))  # type: ignore[index]
    delta = torch.full((7,), LR * row.every * sum(map(slope, range(4))) / 4)
    expected = row.outer(torch.zeros(7), [delta] * rounds)
    assert torch.allclose(result.state_dict["0"].double(), expected, rtol=1e-6)
    assert not equal(result.workers[0].state_dict, result.workers[1].state_dict)
    assert result.losses == pytest.approx(
        [row.outer(torch.zeros(1), [delta[:1]] * k).item() for k in range(rounds + 1)]
    )


def with_churn(row: Row) -> Result:
    """A run in which one joins, one leaves, one is killed, and one is slow."""
    churn = [
        Join(3.2 * row.every),
        Leave(6.5 * row.every, worker=1),
        Kill(worker=2, at=8.7 * row.every),
        Pace(4 * row.every, worker=3, pace=0.7),
    ]
    result = row.train(regression(), peers=4, steps=14 * row.every, codec=row.lossy, churn=churn)
    assert [worker.ended for worker in result.workers] == ["finished", "left", "killed", "finished", "finished"]
    contributors = [set(members(commit.contributors)) for commit in result.commits]
    assert any(4 in who for who in contributors), "the newcomer contributed"
    assert [commit.number for commit in result.commits] == list(range(1, len(result.commits) + 1))
    return result


@gossiping
def test_replicas_come_and_go(row: Row) -> None:
    """With churn the run goes on, and the mean of those who stay has learnt."""
    result = with_churn(row)
    first, last = result.workers[0].losses[: row.every], result.workers[0].losses[-row.every :]
    assert sum(last) < sum(first)
    assert all(torch.isfinite(value).all() for value in result.state_dict.values())


@common
def test_all_peers_hold_the_same_bits_with_churn(row: Row) -> None:
    """One joins, one leaves, one is killed, one is slow; who is there at the end holds the same phi."""
    result = with_churn(row)
    newest = [worker for worker in result.workers if worker.number == len(result.commits)]
    assert newest
    assert all(equal(worker.state_dict, result.state_dict) for worker in newest)


@common
def test_an_aborted_attempt_leaves_no_trace(row: Row) -> None:
    """A worker dies when others wait for its bytes: phi is, bit for bit, as if it had been gone before that sync."""
    sync, stream, at = (13, "grad", 12.5) if row.gradients else (3, "", row.step(3) - 0.5)
    during = row.train(regression(), peers=3, steps=6 * row.every, churn=[Kill(worker=2, sync=sync, stream=stream)])
    before = row.train(regression(), peers=3, steps=6 * row.every, churn=[Kill(worker=2, at=at)])
    assert during.aborts
    assert not before.aborts
    assert equal(during.state_dict, before.state_dict)


@rows
def test_a_resumed_run_is_one_whose_trainers_all_started_from_phi_there(row: Row) -> None:
    """Bit for bit: phi, outer state and place in the log are in what was saved, and nothing else of the run matters.

    With more than two replicas it is drawn anew who meets whom.
    """
    steps, peers = 4 * row.every, 3 if row.common else 2
    half = row.train(regression(), peers=peers, steps=steps, codec=row.lossy)
    rest = row.train(regression(), peers=peers, steps=2 * steps, codec=row.lossy, resume=half)
    anew = row.train(regression(), peers=peers, steps=2 * steps, codec=row.lossy, churn=[Restart(steps)])
    whole = row.train(regression(), peers=peers, steps=2 * steps, codec=row.lossy)
    losses = [one.losses + other.losses for one, other in zip(half.workers, rest.workers, strict=True)]
    for run in (anew,) if row.private else (anew, whole):
        assert [commit.chain for commit in rest.commits] == [commit.chain for commit in run.commits]
        assert equal(rest.state_dict, run.state_dict)
        assert losses == [worker.losses for worker in run.workers]
    assert equal(rest.state_dict, whole.state_dict) == (not row.private), "the table says whether anything is lost"
    assert len(rest.commits) > len(half.commits)


@gossiping
def test_every_replica_goes_on_from_its_own_state(row: Row) -> None:
    half = row.train(regression(), peers=4, steps=4 * row.every, codec=row.lossy)
    rest = row.train(regression(), peers=4, steps=4 * row.every, codec=row.lossy, resume=half)
    for one, other in zip(half.workers, rest.workers, strict=True):
        assert equal(one.state_dict, other.state_dict)
    assert not equal(rest.workers[0].state_dict, rest.workers[1].state_dict)


@rows
def test_the_bytes_are_those_of_the_formula(row: Row) -> None:
    """(M - 1) (U + D) for each sync: a contribution is sent to whoever owns a chunk, a mean to everybody else."""
    peers, steps = 3, 4 * row.every
    for name in ("fp32", row.lossy):
        result = row.train(regression(7000), peers=peers, steps=steps, codec=name)
        syncs = row.syncs(steps)
        found = {s: [c.contributors for c in result.commits if c.sync.stream == s] for s in syncs}
        if row.common:
            assert {s: len(commits) for s, commits in found.items()} == dict(syncs)
            assert {len(who) for commits in found.values() for who in commits} == {peers}
        sizes = {s: row.elements.get(s, 21003) for s in syncs}
        codecs = {s: name if name == "fp32" else row.codecs.get(s, name) for s in syncs}
        sent = {s: sum(len(who) - 1 for who in commits) for s, commits in found.items()}
        assert result.sync_bytes == sum(2 * sent[s] * codec_bytes(codecs[s], sizes[s]) for s in syncs)


@rows
def test_the_same_arguments_give_the_same_run(row: Row) -> None:
    runs = [row.train(regression(), peers=3, steps=3 * row.every, codec=row.lossy) for _ in range(2)]
    assert equal(runs[0].state_dict, runs[1].state_dict)
    assert [w.losses for w in runs[0].workers] == [w.losses for w in runs[1].workers]
    assert [c.chain for c in runs[0].commits] == [c.chain for c in runs[1].commits]
