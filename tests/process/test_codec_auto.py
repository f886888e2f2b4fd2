"""A run that leaves the codec to each sync, over a link that becomes slow: real daemons in the lab."""

from pathlib import Path

import pytest

from tests.process.harness import Run
from wantrain.lab import Lab, Shape, available

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

EVERY = 120
"""Inner steps of 5 ms and more: a tenth of them takes 60 ms at least, which is what an exchange may take."""
HIDDEN = ("--hidden", "2048")
"""43,012 values: 4 ms each way at 100 Mbit/s in int8, 1.4 s at 250 kbit/s."""
FAST, SLOW = Shape.parse("rate=100mbit,rtt=1ms"), Shape.parse("rate=250kbit,rtt=1ms")


def test_a_link_that_becomes_slow_gets_fewer_bits(tmp_path: Path) -> None:
    with Lab(3, FAST, seed=1) as lab, Run(tmp_path, codec="auto", options={"method": {"every": EVERY}}, lab=lab) as run:
        run.coordinator()
        for name in ("anna", "bert"):
            run.peer(name, trainer=HIDDEN)

        def last_codec() -> str:
            commits = run.commits()
            return commits[-1]["codec"] if commits else ""

        run.until_commits(2, "anna", "bert")
        assert last_codec() == "int8"
        for a, b in (("anna", "bert"), ("bert", "anna")):
            lab.shape(run.hosts[a], run.hosts[b], SLOW)
        run.until(lambda: last_codec() == "rms0.75+huffman", "fewer bits")
        commit = run.commits()[-1]
        assert "rms0.75+huffman as the slack is" in commit["plan"]
        assert run.status()["commits"][-1]["codec"].startswith("rms")
        for a, b in (("anna", "bert"), ("bert", "anna")):
            lab.shape(run.hosts[a], run.hosts[b], FAST)
        run.assert_parity("anna", "bert")
        run.stop("anna", "bert")
