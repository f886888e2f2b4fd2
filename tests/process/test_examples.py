"""The examples as they are: two peers with real daemons train each for three rounds, and end with the same weights."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.process.harness import ROOT, Run
from wantrain.peers.checkpoint import newest, scan
from wantrain.peers.export import export

EXAMPLES = ROOT / "scripts" / "examples"
TOGETHER = Path(__file__).with_name("together.py")
ROUNDS = 3
"""As the scripts have it."""
NEEDS = {"hf-trainer": "transformers", "lightning": "lightning", "accelerate": "accelerate"}
ALL = {"sync": {"quorum": 1.0, "grace_floor_s": 60.0, "grace_ceiling_s": 60.0}, "method": {"every": 5}}
"""Every round has both in it, however slow one of them is."""


def weights(out: Path) -> dict[str, torch.Tensor]:
    """What a script has saved, in the way of its library."""
    if out.is_dir():
        return load_file(out / "model.safetensors")
    saved = torch.load(out, weights_only=True)
    found: dict[str, torch.Tensor] = saved.get("state_dict", saved)
    return found


@pytest.mark.parametrize("example", ["nanogpt", "hf-trainer", "lightning", "accelerate"])
def test_an_example_trains_with_others(example: str, new_run: Callable[..., Run]) -> None:
    library = NEEDS.get(example, "torch")
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed: scripts/setup dev does that")
    run = new_run(codec="fp32", options=ALL)
    names = ("peer-0", "peer-1")
    for number, name in enumerate(names):
        script = EXAMPLES / example / "train.py"
        words = ("--seed", str(number), "--out", run.folder / f"{name}.out")
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(run.folder / "hf")}
        ranks = 2 if example == "fsdp2" else 1
        start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2") if ranks > 1 else ()
        together = (*start, TOGETHER, run.folder, str(ranks * len(names)))
        run.peer(name, script=(*together, script, *words), environment=offline)
    assert [run.exit_code(name) for name in names] == [0, 0], run.story()

    records = run.assert_one_history(*names)
    assert [len(record.contributors) for record in records] == [2] * ROUNDS
    saved = [newest(run.folder / name / "checkpoints") for name in names]
    assert [entry.saved.number for entry in saved if entry is not None] == [ROUNDS] * 2
    digests = set()
    for entry in saved:
        assert entry is not None
        scan(entry.path, entry.saved)
        digests.add(entry.saved.state_digest)
    assert len(digests) == 1
    described = saved[0].saved.described if saved[0] is not None else None
    if example == "hf-trainer":
        assert described is not None
        config = json.loads(described.config)
        assert (config["model_type"], config["architectures"]) == ("gpt2", ["GPT2LMHeadModel"])
        assert described.generation_config
    else:
        assert described is None
    phi = run.folder / "phi.safetensors"
    assert saved[0] is not None
    export(saved[0].path, saved[0].saved, phi, None)
    for name in names:
        trained = weights(run.folder / f"{name}.out")
        for key, value in load_file(phi).items():
            assert torch.equal(trained[key], value), (name, key)
