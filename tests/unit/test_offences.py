"""Whose contribution is left out: by what it reports itself, and by what others say of it."""

import pytest

from wantrain.peers.offences import NORM_LIMIT, Offences, out_of_line


@pytest.mark.scenario(14)
@pytest.mark.parametrize(
    ("norms", "out"),
    [
        ([1.0, 1.0], ""),
        ([1.0, 1e9], ""),  # of two nobody can tell
        ([1.0, 2.0, 1e9], "c"),
        ([0.0, 2.0, 1.0], "a"),
        ([0.0, 0.0, 1.0], ""),  # most stand still
        ([0.0, 0.0, 0.0], ""),
        ([1.0, NORM_LIMIT, 0.5], ""),
        ([1e30, 1e30, 1.0], ""),
        ([1.0, 0.0, 1.0, 1e5, 1.0], "bd"),
    ],
)
def test_who_has_diverged_or_stands_still_is_out_of_line(norms: list[float], out: str) -> None:
    found = out_of_line(dict(zip("abcde", norms, strict=False)))
    assert "".join(found) == out
    assert all("median" in reason for reason in found.values())


@pytest.mark.scenario(14)
def test_the_accused_is_to_blame_and_every_time_counts() -> None:
    offences = Offences()
    assert [offences.judge(by, "x") for by in "aba"] == ["x", "x", "x"]
    assert [offences.punish("x", reason) for reason in ("first", "second")] == [1, 2]
    assert offences.guilty["x"].reason == "second"


@pytest.mark.scenario(14)
def test_who_alone_accuses_several_is_to_blame_itself() -> None:
    offences = Offences()
    assert offences.judge("liar", "a") == "a"
    assert offences.judge("liar", "b") == "liar"
    assert offences.judge("a", "b") == "b"  # now two say it
    assert offences.judge("liar", "b") == "b"


def test_what_several_say_counts_whoever_is_heard_first() -> None:
    """Two peers send garbage to all; the first to notice is always the same one."""
    offences = Offences()
    for accused in "xy":
        offences.heard("b", accused)
        assert offences.judge("a", accused) == accused


def test_nobody_accuses_itself() -> None:
    offences = Offences()
    offences.heard("a", "a")
    assert offences.judge("b", "a") == "a"
    assert offences.judge("b", "c") == "b"


def test_who_stays_out_of_line_begins_anew_again_and_again_but_ever_more_seldom() -> None:
    offences = Offences()
    assert [k for k in range(1, 20) if offences.diverged("x")] == [2, 4, 8, 16]
    offences.contributed(["x", "y"])
    assert [k for k in range(1, 4) if offences.diverged("x")] == [2]
