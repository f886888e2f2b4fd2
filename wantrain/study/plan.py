"""What the study trains: sizes of the model, settings of the methods, and the runs that these come to; data only."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wantrain.demo.model import GPTConfig

SEEDS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Size:
    """A model, and how long and on what each worker trains it."""

    name: str
    model: GPTConfig
    steps: int
    """Inner steps of the run."""
    batch: int
    """Windows in a worker's step; each has as many tokens as the model's context."""
    lr: float
    """Peak learning rate of AdamW: linear warm-up over a tenth of the steps, then a cosine to a tenth."""

    @property
    def tokens(self) -> int:
        """That a worker trains on in one step."""
        return self.batch * self.model.context


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to train: one row of a table."""

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    codec: str = "int8"
    down: str = ""
    table: str = "methods"
    """Which table of docs/methods.md it belongs to: methods, regimes, codecs, periods, churn or speeds."""
    paces: tuple[float, ...] = ()
    """Steps that each worker makes in the time of one usual step; (): 1 for all."""
    churn: bool = False
    """Whether a worker is killed and another one joins, again and again."""


@dataclass(frozen=True, slots=True)
class Run:
    """One setting with one seed."""

    size: Size
    peers: int
    setting: Setting
    seed: int

    @property
    def row(self) -> dict[str, Any]:
        """What runs of the same row have in common; what it is in the file of figures."""
        return {"size": asdict(self.size), "peers": self.peers, "setting": asdict(self.setting)}

    @property
    def training(self) -> "Run":
        """What is trained, whatever the row is called: equal for runs of several tables that need be made only once."""
        return replace(self, setting=replace(self.setting, label="", table=""))


H = 30
"""Inner steps between two syncs where nothing else is said: what the papers' small runs have."""

SMALL = Size("0.12 M", GPTConfig(layers=2, width=64, heads=4, context=64), steps=600, batch=8, lr=3e-3)
MEDIUM = Size("1.05 M", GPTConfig(), steps=480, batch=4, lr=2e-3)
LONG = replace(SMALL, name="0.12 M, long", steps=2400)
WIDE = replace(SMALL, name="0.12 M, large batches", batch=32)
LARGE = Size("5.1 M", GPTConfig(layers=6, width=264, heads=6, context=64), steps=300, batch=4, lr=1e-3)

ALONE = Setting("one worker alone, as many steps", "local-sgd", {"every": H}, "fp32")
DDP = Setting("data parallel", "ddp", codec="fp32")
DILOCO = Setting("DiLoCo", "diloco", {"every": H})
STREAMING = Setting("Streaming DiLoCo, int4 up", "streaming-diloco", {"every": H, "fragments": 2}, "int4", "int8")
NOLOCO = Setting("NoLoCo, fp32", "noloco", {"every": H}, "fp32")
EAGER = Setting("eager", "eager", {"every": H})
DES_LOC = Setting("DES-LOC", "des-loc", {"every": H})
LOCAL_SGD = Setting("Local SGD", "local-sgd", {"every": H})
LOCAL_ADAM = Setting("Local Adam", "local-adam", {"every": H})

QSR = {"every": 10, "schedule": "qsr", "growth": 0.012, "warmup": 60, "total": 600}
"""The rule counts steps of the run: `warmup` and `total` are the small model's."""

METHODS = (
    DDP,
    LOCAL_SGD,
    LOCAL_ADAM,
    DES_LOC,
    DILOCO,
    STREAMING,
    EAGER,
    Setting("delayed", "delayed", {"every": H}),
    NOLOCO,
    Setting("FedAdam", "fedadam", {"every": H}),
    Setting("FedYogi", "fedyogi", {"every": H}),
    Setting("FedAdagrad", "fedadagrad", {"every": H}),
    Setting("SPARTA, a 30th of the coordinates every step", "sparta", {"parts": H}),
)
REGIMES = tuple(replace(setting, table="regimes") for setting in (DDP, LOCAL_SGD, DILOCO))
CODECS = tuple(
    Setting(f"DiLoCo, {label}", "diloco", {"every": H}, codec, down, "codecs")
    for label, codec, down in (
        ("fp32", "fp32", ""),
        ("int8", "int8", ""),
        ("int4 up, int8 down", "int4", "int8"),
        ("e3m0 up, int8 down", "e3m0", "int8"),
        ("rms0.35 up, int8 down", "rms0.35+zstd", "int8"),
        ("rms0.75 with error feedback up, int8 down", "rms0.75+huffman", "int8"),
    )
)
PERIODS = (
    *(Setting(f"DiLoCo, every {every}", "diloco", {"every": every}, table="periods") for every in (10, H, 60, 120)),
    Setting("Local SGD, every 10", "local-sgd", {"every": 10}, table="periods"),
    Setting("Local SGD, QSR from 10", "local-sgd", QSR, table="periods"),
)
CHURN = (
    Setting("DiLoCo, nobody comes or goes", "diloco", {"every": H}, table="churn"),
    Setting("DiLoCo, one killed and one new every 4 rounds", "diloco", {"every": H}, table="churn", churn=True),
)
SPEEDS = tuple(
    Setting(label, "diloco", {"every": H, **options}, table="speeds", paces=paces)
    for label, options, paces in (
        ("DiLoCo, equal speeds", {}, ()),
        ("DiLoCo, one at half the speed, waited for", {}, (1.0, 1.0, 1.0, 0.5)),
        (
            "the same, which makes fewer steps (dynamic)",
            {"schedule": "dynamic", "weight": "tokens"},
            (1.0, 1.0, 1.0, 0.5),
        ),
    )
)


def runs(which: str) -> Iterator[Run]:
    """All runs of the study, those that matter most first.

    Args:
        which: "quick" for one seed of a few settings, "default", or "full" with the large model too.
    """
    if which == "quick":
        for setting in (ALONE, DDP, DILOCO, STREAMING):
            yield Run(SMALL, 1 if setting is ALONE else 4, setting, SEEDS[0])
        return
    # Seed by seed, so that a study that is interrupted has something of everything.
    for seed in SEEDS:
        yield Run(SMALL, 1, ALONE, seed)
        for setting in (*METHODS, *CODECS, *PERIODS, *CHURN, *SPEEDS):
            yield Run(SMALL, 4, setting, seed)
        for peers in (2, 8):
            for setting in (DDP, DILOCO, STREAMING, EAGER, NOLOCO, DES_LOC, LOCAL_ADAM):
                yield Run(SMALL, peers, setting, seed)
        for size in (LONG, WIDE):
            yield Run(size, 1, ALONE, seed)
            for setting in REGIMES:
                yield Run(size, 4, setting, seed)
        for size in (MEDIUM, LARGE) if which == "full" else (LARGE,):
            yield Run(size, 1, ALONE, seed)
            for setting in (DDP, DILOCO, STREAMING):
                yield Run(size, 2, setting, seed)
