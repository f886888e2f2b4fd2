"""Churn on real processes, the short version: what must not grow does not, and all end with one state."""

from pathlib import Path

import pytest

from tests.conftest import Measured
from tests.process.soak import soak

PEERS = 4


@pytest.mark.scenario(19)
def test_churn_leaves_memory_descriptors_and_files_bounded_and_one_state(tmp_path: Path, measured: Measured) -> None:
    report = soak(tmp_path, syncs=150, peers=PEERS, limit_s=90.0, seed=1)
    assert report.parity
    assert sum(report.strikes.values()) >= 3, "something has to have happened"
    assert report.growth_mb < 40, "of a process of 250 MB, once it is warm"
    assert report.most["descriptors"] < 40 + 20 * PEERS
    assert report.most["files"] < 20
    assert report.most["home_mb"] < 10
    assert report.most["segments"] <= PEERS, "who is started again removes what its killed process left"
    measured(19, "commits under churn", report.syncs, "")
    measured(19, "kills, leaves, freezes and coordinator crashes", sum(report.strikes.values()), "")
    measured(19, "most that a warm process has grown", report.growth_mb, "MB")
    measured(19, "most descriptors of a process", report.most["descriptors"], "")
