"""A callback for Lightning's Trainer: its training takes part in the run of the peer beside it."""

from typing import Any

from wantrain.errors import ConfigError
from wantrain.session import Swarm, join

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ConfigError(f"lightning cannot be imported: {error}", hint="pip install 'wantrain[lightning]'") from None


class SwarmCallback(Callback):  # type: ignore[misc]
    """Joins when training begins, logs the loss for `wantrain status`, leaves when training ends.

        trainer = Trainer(callbacks=[SwarmCallback(rounds=1000)])

    Several optimizers are taken in the order in which `configure_optimizers` gives them. A checkpoint holds what
    `swarm.state_dict()` gives; `fit(ckpt_path=...)` brings back optimizer, schedule and that, and the weights are the
    run's. Training that ends by an error does not leave: its peer takes it for a crash.

    Args:
        rounds: end the training when the run has made so many; None: the Trainer's own end.
        options: those of `wantrain.join`.
    """

    def __init__(self, rounds: int | None = None, **options: Any) -> None:
        self.rounds = rounds
        self.options = options
        self.swarm: Swarm | None = None
        """This trainer's part in the run, while it trains."""
        self._saved: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """What the Trainer puts into its checkpoints."""
        return self._saved if self.swarm is None else self.swarm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What it finds in one; before training begins."""
        self._saved = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swarm = join(pl_module, trainer.optimizers, **self.options)
        if self._saved:
            self.swarm.load_state_dict(self._saved)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.swarm is None:
            return
        # Not at every step: reading the loss waits for the device.
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None and trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            self.swarm.log(loss=loss)
        if self.rounds is not None and self.swarm.round >= self.rounds:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.swarm is not None:
            self._saved = self.swarm.state_dict()
            self.swarm.leave()
            self.swarm = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.swarm is not None:
            self.swarm.close()
            self.swarm = None
