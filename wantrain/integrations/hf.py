"""A callback for the Trainer of Hugging Face transformers: its training takes part in the run of the peer beside it."""

from typing import Any

from wantrain.errors import ConfigError
from wantrain.session import Swarm, join

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ConfigError(f"transformers cannot be imported: {error}", hint="pip install 'wantrain[hf]'") from None


class SwarmCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Joins when training begins, logs the Trainer's loss and tokens for `wantrain status`, leaves when it ends.

        trainer = Trainer(model, args, train_dataset=data, callbacks=[SwarmCallback(rounds=1000)])

    The Trainer's `max_steps`, schedule, evaluation and checkpoints are this peer's own. A checkpoint holds what
    `swarm.state_dict()` gives; `train(resume_from_checkpoint=...)` brings back optimizer, schedule, place in the data
    and that, and the weights are the run's. Tokens are counted if the model's main input is `input_ids`.

    Args:
        rounds: end the training when the run has made so many; None: the Trainer's own end.
        options: those of `wantrain.join`.
    """

    def __init__(self, rounds: int | None = None, **options: Any) -> None:
        self.rounds = rounds
        self.options = options
        self.swarm: Swarm | None = None
        """This trainer's part in the run, while it trains."""
        self.saved: dict[str, Any] = {}
        """What `swarm.state_dict()` gave for the last checkpoint."""

    def state(self) -> dict[str, Any]:
        """What the Trainer puts into its checkpoints."""
        if self.swarm is not None:
            self.saved = self.swarm.state_dict()
        return {"args": {"rounds": self.rounds, **self.options}, "attributes": {"saved": self.saved}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of_trainer: Any
    ) -> None:
        """`state` is that of the checkpoint, if training goes on from one."""
        model = of_trainer["model"]
        self.swarm = join(model, of_trainer["optimizer"], **self.options)
        if getattr(model, "main_input_name", "") == "input_ids" and args.include_num_input_tokens_seen == "no":
            args.include_num_input_tokens_seen = "all"
        kept = state.stateful_callbacks.get(type(self).__name__, {})
        if state.global_step and (saved := kept.get("attributes", {}).get("saved")):
            self.swarm.load_state_dict(saved)
        # One that was made without this callback has no place for its state, and the Trainer expects it.
        state.stateful_callbacks[type(self).__name__] = self.state()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.swarm is not None and state.num_input_tokens_seen:
            # The Trainer counts those of all ranks, and wantrain adds up what each rank says.
            self.swarm.log(tokens=state.num_input_tokens_seen // args.world_size)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.swarm is not None and logs and "loss" in logs:
            self.swarm.log(loss=logs["loss"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.swarm is not None and self.rounds is not None and self.swarm.round >= self.rounds:
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.swarm is not None:
            self.swarm.leave()
            self.swarm = None
