"""Staging and adoption on CUDA, where there is a GPU: the CPU's bits, pinned memory, and little memory of the GPU's."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.unit.lockstep import Lockstep
from wantrain.optimizers.method import build
from wantrain.optimizers.stream import Wire
from wantrain.piece import BOX
from wantrain.replica import Replica

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

torch.set_num_threads(1)

EXACT = Wire("fp32", "fp32")
METHODS: dict[str, dict[str, object]] = {
    "ddp": {},
    "local-sgd": {"every": 2},
    "diloco": {"every": 4, "delay": 1},
    "streaming-diloco": {"every": 4, "delay": 1, "split": "balanced", "fragments": 2},
    "sparta": {},
}


class Net(nn.Module):
    """Weights that are moved by given amounts; one of them does not lie in order, one is a single number."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(40, 30, generator=rng).to(dtype))
        self.b = nn.Parameter(torch.randn(8, 4, 3, 3, generator=rng).to(dtype, memory_format=torch.channels_last))
        self.c = nn.Parameter(torch.randn((), generator=rng).to(dtype))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Lockstep]]:
    made: list[Lockstep] = []

    def start(method: str, dtype: torch.dtype, device: str) -> Lockstep:
        def make(_: int) -> tuple[nn.Module, torch.optim.Optimizer]:
            model = Net(dtype).to(device)
            # Not Adam: what an inner optimizer computes may differ between devices in the last bit. This may not.
            return model, torch.optim.SGD(model.parameters(), lr=0.5)

        made.append(Lockstep(make, 2, build(method, METHODS[method], EXACT), tmp_path / str(len(made)), 1))
        return made[-1]

    yield start
    for one in made:
        one.close()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().cpu() for parameter in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_stages_and_adopts_the_bits_that_a_cpu_does(
    run: Callable[..., Lockstep], method: str, dtype: torch.dtype
) -> None:
    sides = [run(method, dtype, device) for device in ("cpu", "cuda")]
    for step in range(12):
        for side in sides:

            def gradients(k: int, side: Lockstep = side, step: int = step) -> None:
                rng = torch.Generator().manual_seed(100 * step + k)
                for parameter in side.workers[k].model.parameters():
                    # Powers of two, so that a step is exact up to one rounding on any device.
                    drawn = torch.randint(-3, 4, parameter.shape, generator=rng).to(parameter.dtype)
                    parameter.grad = torch.empty_like(parameter).copy_(drawn)

            side.step(gradients)
        torch.cuda.synchronize()
        on_cpu, on_gpu = sides
        for one, other in zip(on_cpu.workers, on_gpu.workers, strict=True):
            for name, value in one.phi().items():
                assert torch.equal(value, other.phi()[name]), (step, name)
            for a, b in zip(weights(one.model), weights(other.model), strict=True):
                assert torch.equal(a, b), step


def test_shared_memory_is_pinned_while_it_is_used(run: Callable[..., Lockstep]) -> None:
    replica: Replica = run("diloco", torch.float32, "cuda").workers[0].replica
    pages = replica._pages
    assert pages is not None
    assert pages.pinned
    assert next(iter(replica._views.values()))[0].out.is_pinned()
    replica.release()
    assert not pages.pinned


def test_a_large_model_is_copied_through_a_few_boxes_of_device_memory(tmp_path: Path) -> None:
    def make(_: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.ParameterList([nn.Parameter(torch.zeros(4, BOX, dtype=torch.bfloat16)) for _ in range(2)]).cuda()
        return model, torch.optim.SGD(model.parameters(), lr=1.0)

    side = Lockstep(make, 1, build("diloco", {"every": 1}, EXACT), tmp_path / "run")
    try:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            side.step(lambda _: None)
        torch.cuda.synchronize()
        assert torch.cuda.max_memory_allocated() - before <= 5 * 4 * BOX
    finally:
        side.close()
