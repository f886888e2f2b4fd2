"""The checker of the data: of which readers the coordinator has heard in time."""

from tests.sim.data import DataChecker
from wantrain.peers.commit_log import ATTEMPTS_PER_EPOCH
from wantrain.peers.messages import Report

PATIENCE_S = 5.0
EPOCH = 1
READER = b"00000001"
BOOT = b"bootboot"


def report(sequence: int, *, epoch: int = EPOCH) -> Report:
    revision = epoch * ATTEMPTS_PER_EPOCH + 1
    return Report(BOOT, sequence, 0, b"", -1, b"", "training", (), {}, -1.0, "", {}, reader=READER, revision=revision)


def fell_silent(late: Report, process: bytes) -> bool:
    """Whether the reader counts as silent, heard of at second 0 and, with this report, at second 4."""
    checker = DataChecker(60, PATIENCE_S)
    checker.heard(report(1), BOOT, EPOCH, 0.0)
    checker.heard(late, process, EPOCH, 4.0)
    checker.heard(report(3), BOOT, EPOCH, 6.0)
    return READER in checker.silent


def test_a_reader_that_reports_is_not_silent() -> None:
    assert not fell_silent(report(2), BOOT)


def test_a_late_report_of_a_replaced_process_does_not_tell_of_its_reader() -> None:
    assert fell_silent(report(2), b"another1")


def test_a_late_report_from_before_the_coordinator_s_restart_does_not_tell_of_its_reader() -> None:
    assert fell_silent(report(2, epoch=EPOCH - 1), BOOT)


def test_an_old_report_after_a_newer_one_does_not_tell_of_its_reader() -> None:
    assert fell_silent(report(1), BOOT)
