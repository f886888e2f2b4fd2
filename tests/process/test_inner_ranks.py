"""Inner state saved by two ranks of a sharded model is gone on with by one, two and three, bit for bit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

DEADLINE_S = 240.0


@pytest.mark.skipif(sys.platform != "linux", reason="libraries do not bear to be forked elsewhere")
def test_inner_state_is_saved_in_shards_and_loaded_by_another_number_of_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.process.inner_ranks", str(tmp_path)]
    done = subprocess.run(
        [*command, "save:2", "load:2", "load:1", "load:3"], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "inner" / "000002").iterdir())) == 2, "each rank has written its shards"
    wanted = np.load(tmp_path / "save-2.npz")
    assert len(wanted.files) == 4 * 4
    for ranks in (2, 1, 3):
        found = np.load(tmp_path / f"load-{ranks}.npz")
        assert found.files == wanted.files
        for name in wanted.files:
            assert found[name].tobytes() == wanted[name].tobytes(), (ranks, name)
