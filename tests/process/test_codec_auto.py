"""A run that leaves the codec to each sync, over a link that becomes slow and fast again: real daemons in the lab."""

from pathlib import Path

import pytest

from tests.process.harness import Run
from wantrain.lab import Lab, Shape, available

pytestmark = pytest.mark.skipif(bool(available()), reason=available())

EVERY = 150
"""Inner steps of some 5 ms: a tenth of them takes about 0.1 s, which is what an exchange may take."""
HIDDEN = ("--hidden", "8192")
"""172,036 values: 14 ms each way at 100 Mbit/s in int8, half a second at 3 Mbit/s."""
FAST, SLOW = Shape.parse("rate=100mbit,rtt=5ms"), Shape.parse("rate=3mbit,rtt=5ms")


def test_a_slow_link_gets_fewer_bits_until_it_is_fast_again(tmp_path: Path) -> None:
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
        run.until(lambda: last_codec() == "int8", "8 bits again")
        run.assert_parity("anna", "bert")
        run.stop("anna", "bert")
