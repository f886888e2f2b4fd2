"""Saved states in the Hugging Face layout: what the trainer says of its model, and that from_pretrained gives phi."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import nn

from tests.unit.test_checkpoint import NESTEROV, mark, shelf
from wantrain.cli.main import main
from wantrain.model_config import describe
from wantrain.optimizers.stream import Stream
from wantrain.peers.checkpoint import read
from wantrain.peers.description import flaw
from wantrain.peers.engine import Engine
from wantrain.peers.messages import MAX_CONFIG, Describe
from wantrain.replica import Replica
from wantrain.transport.digest import state_digest

torch.set_num_threads(1)
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: scripts/setup dev does that"
)


class Config:
    def __init__(self, **values: Any) -> None:
        self.values = values

    def to_dict(self) -> dict[str, Any]:
        return self.values


class Net(nn.Module):
    """Two tied layers, a frozen one, a buffer that is saved and one that is made anew."""

    def __init__(self, config: Any = None, *, whole: bool = True) -> None:
        super().__init__()
        self.config = config
        self.first, self.tied = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.tied.weight = self.first.weight
        self.register_buffer("anew", torch.ones(2), persistent=False)
        if not whole:
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
            self.register_buffer("kept", torch.ones(2))


def saved_state(root: Path, model: nn.Module, *streams: Stream) -> Path:
    """A state whose phi is what is trained of the model, as a peer beside its trainer saves it."""
    replica = Replica(model, (torch.optim.SGD(model.parameters(), lr=0.1),))
    state = Engine(replica.manifest, streams or (NESTEROV,))
    for slots in state.vectors().values():
        for slot in slots.values():
            slot.zero_()
    state.phi("param").copy_(torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad]))
    where = shelf(root, *streams)
    writing = where.begin(mark(7), replica.manifest, describe(model))
    *_, chunks = state.save_steps(writing.write)
    writing.finish(state_digest(chunks or ()))
    writing.wait()
    assert writing.poll()
    where.close()
    return root / f"{7:09}"


def exported(state: Path, out: Path, *words: object) -> Result:
    return CliRunner().invoke(main, ["checkpoint", "export", str(state), str(out), "--hf", *map(str, words)])


# ---- what the trainer says


def test_a_model_without_a_config_says_nothing() -> None:
    assert describe(Net()) is None
    assert describe(Net({"hidden": 3})) is None  # nothing that gives itself as JSON


def test_the_config_is_found_in_wrappers_if_all_that_is_trained_is_in_its_module() -> None:
    inner = Net(Config(hidden=3, model_type="net"))
    text = json.dumps({"hidden": 3, "model_type": "net"}, indent=2, sort_keys=True)
    assert describe(inner) == Describe(text)
    assert describe(torch.compile(inner, backend="eager")) == Describe(text)  # type: ignore[arg-type]
    wrapper = nn.Module()
    wrapper.model = nn.Sequential(inner)
    assert describe(wrapper) == Describe(text, prefix="model.0.")
    wrapper.head = nn.Linear(1, 1)
    assert describe(wrapper) is None


def test_what_the_run_does_not_hold_is_named() -> None:
    described = describe(Net(Config(), whole=False))
    assert described is not None
    assert described.absent == ("frozen.weight", "frozen.bias", "kept")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Config(layer=nn.Linear), "gives no JSON"),
        (Config(words="x" * MAX_CONFIG), "the config has"),
        (type("Odd", (), {"to_json_string": lambda _: "[1]"})(), "allowed is an object"),
        (type("Odd", (), {"to_json_string": lambda _: 1 / 0})(), "division by zero"),
    ],
)
def test_a_config_that_cannot_be_kept_is_told_of(config: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    assert describe(Net(config)) is None
    assert said in caplog.text


def test_a_daemon_keeps_nothing_that_is_no_json_object() -> None:
    assert flaw(Describe("{}")) == ""
    assert "not JSON" in flaw(Describe(""))
    assert "allowed is an object" in flaw(Describe("[]"))
    assert "recursion" in flaw(Describe("[" * 100_000))
    assert "the generation config is not JSON" in flaw(Describe("{}", "{"))


# ---- what is written


def test_names_are_those_of_the_layout_and_tied_weights_are_there_once(tmp_path: Path) -> None:
    wrapper = nn.Module()
    wrapper.model = Net(Config(dtype="float32", hidden=3, torch_dtype="float32"))
    state = saved_state(tmp_path / "kept", wrapper)
    result = exported(state, tmp_path / "out", "--dtype", "bfloat16", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == {
        "number": 7, "tensors": 1, "bytes": 18, "directory": str(tmp_path / "out"), "files": ["model.safetensors"]
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json"}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert list(tensors) == ["first.weight"]
    assert torch.equal(tensors["first.weight"], wrapper.model.first.weight.detach().bfloat16())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"dtype": "bfloat16", "hidden": 3, "torch_dtype": "bfloat16"}
    again = exported(state, tmp_path / "out")
    assert (again.exit_code, "exists already" in again.stderr) == (8, True)


def test_a_config_may_be_given_and_without_one_it_is_said(tmp_path: Path) -> None:
    state = saved_state(tmp_path / "kept", Net())
    assert b"described" not in (state / "manifest.json").read_bytes()
    result = exported(state, tmp_path / "out")
    assert (result.exit_code, "no config is kept" in result.stderr) == (8, True)
    given = tmp_path / "config.json"
    given.write_text("[]")
    result = exported(state, tmp_path / "out", "--config", given)
    assert (result.exit_code, "allowed is an object" in result.stderr) == (8, True)
    assert not (tmp_path / "out").exists()
    given.write_text('{"model_type": "net"}')
    assert exported(state, tmp_path / "out", "--config", given).exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"dtype": "float32", "model_type": "net"}
    alone = CliRunner().invoke(main, ["checkpoint", "export", str(state), "x", "--config", str(given)])
    assert (alone.exit_code, "--config is for --hf" in alone.stderr) == (2, True)


def test_a_model_that_the_run_holds_a_part_of_is_not_exported(tmp_path: Path) -> None:
    state = saved_state(tmp_path / "kept", Net(Config(), whole=False))
    assert read(state).described == describe(Net(Config(), whole=False))
    result = exported(state, tmp_path / "out")
    assert result.exit_code == 8
    assert "frozen.weight, frozen.bias, kept are frozen, or buffers" in result.stderr


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path) -> None:
    model = Net(Config())
    with torch.no_grad():
        model.first.weight.fill_(1e30)
    state = saved_state(tmp_path / "kept", model)
    result = exported(state, tmp_path / "out", "--dtype", "float16")
    assert (result.exit_code, "cannot hold" in result.stderr) == (8, True)
    assert exported(state, tmp_path / "no" / "where").exit_code == 8
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


# ---- what transformers makes of it


def tiny(kind: str) -> Any:
    import transformers

    common = {"vocab_size": 48, "bos_token_id": 0, "eos_token_id": 1}
    if kind == "gpt2":  # output tied to the embedding
        config: Any = transformers.GPT2Config(n_positions=16, n_embd=8, n_layer=2, n_head=2, **common)
        return transformers.GPT2LMHeadModel(config)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "mixtral":  # experts in one tensor, which its checkpoints have apart
        config = transformers.MixtralConfig(num_key_value_heads=1, num_local_experts=2, **sizes, **common)
        return transformers.MixtralForCausalLM(config)
    config = transformers.LlamaConfig(num_key_value_heads=1, tie_word_embeddings=False, **sizes, **common)
    return transformers.LlamaForCausalLM(config)  # its rotary frequencies are a buffer that is made anew


@needs_transformers
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mixtral"])
@pytest.mark.parametrize("shard_gb", [5, 1e-6])
def test_from_pretrained_gives_the_logits_of_phi(kind: str, shard_gb: float, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = tiny(kind).eval()
    model.generation_config.top_k = 3
    state = saved_state(tmp_path / "kept", model)
    result = exported(state, tmp_path / "out", "--shard-gb", shard_gb, "--json")
    assert result.exit_code == 0, result.output
    assert (len(json.loads(result.output)["files"]) > 1) is (shard_gb < 1)
    found, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values()), told
    assert type(found) is type(model)
    assert found.config.architectures == [type(model).__name__]
    assert found.generation_config.top_k == 3
    tokens = torch.randint(48, (2, 9))
    with torch.no_grad():
        assert torch.equal(found.eval()(tokens).logits, model(tokens).logits)
