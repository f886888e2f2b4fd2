"""The training API: `join` ties a PyTorch model and its optimizer to the peer daemon beside this process.

After `join` the loop stays as it was; what happens at its steps is in `trainer_shell.py`.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat
from weakref import finalize

import torch
from torch import nn

from wantrain.counted import Counted
from wantrain.errors import ConfigError
from wantrain.inner_checkpoint import Scheduler, load, save
from wantrain.inner_state import MU_PRODUCT, STEP
from wantrain.inner_step import in_order
from wantrain.join_target import find_daemon, joining
from wantrain.look import Evaluated
from wantrain.model_config import describe
from wantrain.own_daemon import OwnDaemon
from wantrain.peers.messages import MAX_NAME, MAX_VALUES, Detach, LetGo, pack
from wantrain.peers.shared_memory import LOCAL_RUN
from wantrain.ranks import site_ranks, split_of
from wantrain.replica import Replica
from wantrain.shard import repeated, samples
from wantrain.trainer_shell import DAEMON, POLL_S, TrainerShell, logger
from wantrain.transport.zmq_link import ZmqLink

LEAVE_PATIENCE_S = 30.0
GOODBYE_S = 0.5
"""How long what was sent last may take to leave."""


def join(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    invite: str | None = None,
    daemon: str | None = None,
    delay: int | None = None,
    peer_options: Mapping[str, Any] | None = None,
) -> "Swarm":
    """Take part in a run, and take over the run's weights.

    A *peer daemon* beside this process speaks to the others. Whichever of these comes first says which:

    1. `daemon=` or `invite=`;
    2. WANTRAIN_DAEMON in the environment, set in scripts that `wantrain peer '<invite>' -- python train.py` has started
       (or by hand, with what `wantrain peer '<invite>'` prints);
    3. WANTRAIN_INVITE in the environment.

    With an invite this process starts a daemon of its own, also in a notebook. It ends when this trainer leaves or
    closes, or this process ends, in whatever way. Ctrl-C does not reach it: what is in flight is finished first. What
    it does is in `Swarm.daemon_log`.

    Args:
        model: its parameters that require gradients are trained together; they must be the run's in name, shape,
            dtype and order. They are overwritten with the run's state, unless this peer gives the run its first one.
            It may be compiled. Frozen parameters and buffers (such as batch norm's statistics) stay this peer's own.
            Under torchrun every rank calls join, with the model whole or sharded (DDP, fully_shard, tensor parallel).
        optimizer: the inner optimizer, whose state stays this peer's own unless the method exchanges it; or several
            (Muon for matrices, AdamW for the rest), in the order in which they step. Gradients may be accumulated
            between its steps.
        invite: "wantrain://…", as the coordinator or `wantrain invite` prints it.
        daemon: address of a daemon that runs, "ipc://path".
        delay: inner steps that this peer makes while an exchange is under way, if it is to be another number than the
            others', as its links are faster or slower; of a method that has a delay. None: the run's.
        peer_options: with `invite`: options of `wantrain peer` with underscores, such as {"name": "berlin", "home":
            "runs/berlin", "max_upload": "50mbit"}. Without a home it is one of this machine's for the run.

    Raises:
        ConfigError: no daemon and no invite is named, or the model cannot be trained this way, or this process takes
            part in the run already, or there are several ranks and torch.distributed is not initialised.
        InviteError: the invite is malformed, expired or used up.
        ModelMismatchError: the model is not the run's.
        RefusedError: the run or the peer turns this process away.
        UnreachableError: no daemon at the address, no answer of the run, or no state of it for 600 s.
    """
    ranks = site_ranks()
    options: dict[str, Any] = {"wait_ceiling_s": _wait_ceiling_s(), "delay": delay}
    optimizers = in_order(optimizer)
    link = ZmqLink(LOCAL_RUN)
    try:
        if ranks is None:
            swarm = Swarm(link, Replica(model, optimizers), **options)
        else:
            from wantrain.ranked_session import ranked  # it is built on this module

            swarm = ranked(model, optimizers, ranks, link, **options)
    except BaseException:
        link.close()
        raise
    try:
        swarm.described = describe(model)
        found = find_daemon(invite, daemon, peer_options) if ranks is None or ranks.leads else None
        with joining(found) as joined:
            if isinstance(found, OwnDaemon):
                swarm.own(found)
            swarm.attach(found.start() if isinstance(found, OwnDaemon) else found or "")
            swarm.hook(optimizers)
            joined(swarm)
    except BaseException:
        swarm.close()
        raise
    return swarm


def _wait_ceiling_s() -> float | None:
    """The longest wait for a grant that the environment asks for; None leaves it to the peer."""
    text = os.environ.get("WANTRAIN_WAIT_CEILING_S")
    if text is None:
        return None
    try:
        ceiling_s = float(text)
    except ValueError:
        ceiling_s = math.nan
    if not ceiling_s > 0:
        raise ConfigError(f"WANTRAIN_WAIT_CEILING_S is {text!r}, allowed is a number > 0", hint="leave it to the peer")
    return ceiling_s


class Swarm(TrainerShell):
    """This process's part in a run; made by `join`. To be used by the thread that trains."""

    _own: OwnDaemon | None = None
    """The daemon that `join` has started for this trainer."""

    def own(self, daemon: OwnDaemon) -> None:
        """Take this daemon for one that is this trainer's alone, and ends with it."""
        self._own = daemon
        finalize(self, daemon.end)  # also if nobody leaves or closes

    # ---- what the loop may ask

    @property
    def daemon_log(self) -> Path | None:
        """Where the daemon that `join` has started writes what it does, as JSON lines; None if it has started none."""
        return None if self._own is None else self._own.log

    @property
    def closed(self) -> bool:
        """Whether this trainer has left the run for good."""
        return self._closed

    @property
    def round(self) -> int:
        """Exchanges of the run that this trainer's weights contain: what to end a loop by, the same for all peers."""
        return self._core.rounds

    @property
    def global_step(self) -> int:
        """The run's step count, for learning rate schedules: at the last exchange taken over, and own steps since."""
        return self._core.global_step

    @property
    def own_steps(self) -> int:
        """Inner steps that this trainer has made since it joined, and before, if `load_state_dict` has told of them."""
        return self._core.step + self._counted.own_steps

    # ---- what the loop may say

    def tokens(self, count: int) -> None:
        """Count `count` more tokens that this trainer was trained on; before `optimizer.step()`."""
        self.log(tokens=self._tokens + count)

    def log(self, **numbers: SupportsFloat) -> None:
        """Hand numbers to the peer for `wantrain status`: the newest of each name, at most every 0.2 s.

        `tokens` is the count of all that this trainer was trained on so far, which may also weigh its contributions.
        While the daemon is away the 256 names that were logged last are kept.

        Raises:
            ConfigError: not a number, a name that cannot be one, or more than 64 names at once.
        """
        if len(numbers) > MAX_VALUES:
            raise ConfigError(
                f"log: {len(numbers)} names at once, at most {MAX_VALUES}", hint="log some in another call"
            )
        found: dict[str, float] = {}
        for name, value in numbers.items():
            try:
                plain = value.detach() if isinstance(value, torch.Tensor) else value
                number = float(plain) if not isinstance(plain, str) else None
            except (TypeError, ValueError, RuntimeError):
                number = None
            if number is None or (name == "tokens" and number < 0):
                allowed = "counts >= 0" if name == "tokens" else "numbers"
                raise ConfigError(f"log({name}={value!r}): allowed are {allowed}", hint="pass a float or tensor.item()")
            if len(name) > MAX_NAME or not name.isprintable():
                raise ConfigError(
                    f"log: name {name[:40]!r} of {len(name)} characters, allowed are up to {MAX_NAME} printable ones",
                    hint="log it by another name",
                )
            if math.isfinite(number):
                found[name] = number
            else:
                logger.warning("%s is %s at step %d; status shows the value before", name, number, self._core.step)
        self._tokens = int(found.get("tokens", self._tokens))
        self._keep(found)
        self._send_log()

    def shard(
        self,
        dataset: Any,
        *,
        name: str = "data",
        seed: int = 0,
        epochs: int | None = None,
        batch: int | None = None,
        split: tuple[int, int] | None = None,
    ) -> Iterator[Any]:
        """This trainer's part of a data set with `len` and indices: all peers together draw each sample once an epoch.

        The order of an epoch is one random permutation for the whole run, handed out to the peers in leases as fast as
        they use them. What a peer had drawn and no committed sync contains is drawn again if it fails. To be drawn from
        by the thread that trains; what is drawn ahead of an inner step counts as used by it.

        Anything else that can be iterated over again (a DataLoader) is passed through as it is.

        Args:
            dataset: where the samples are; of the same length and order at all peers.
            name: of the data set, one for all peers; each has an order of its own.
            seed: of the order, >= 0.
            epochs: how often the run goes through it; None: for ever. The last samples of the last epoch may be with
                other peers that fail, so everybody waits until they are in a committed sync.
            batch: so many samples at once, stacked as a DataLoader does; the last of all may be fewer. None: single.
            split: under torchrun, which part (from 0 on) of how many this rank gets of what its site draws; ranks that
                are tensor parallel to each other name the same one. All ranks draw at the same time. At the end of the
                data every rank gets at least one sample or none does: where fewer are left than parts, some samples
                are in several. None: each rank its own.

        Raises:
            ConfigError: an argument that cannot be used, an empty dataset, or (when the first sample is drawn) the run
                knows another data set by this name.
        """
        if batch is not None and batch < 1:
            raise ConfigError(f"shard: batch is {batch}, allowed are 1 and more")
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            return repeated(dataset, epochs)
        part = split_of(split)
        supply = self._shards.open(name, len(dataset), seed, epochs)
        own = self._shards.own_order(supply)
        return samples(dataset, lambda count: self._draw(supply, own, count, part), batch)

    def evaluating(self) -> AbstractContextManager[Evaluated]:
        """Within it the model's parameters are the run's common weights phi; afterwards they are what they were.

        For a look at phi while training goes on:

            with swarm.evaluating() as phi:
                print(phi.round, held_out_loss(model))

        The weights are the newest of the run, all as of one log number, rounded to the parameters' dtype. Whatever the
        method, that is what a newcomer would start from; what this trainer has trained since is not in it. Nobody waits
        for it: the peer daemon goes on with exchanges, and what comes meanwhile is taken over after the end. It needs
        room for one more copy of the parameters beside them, and shared memory for one in fp32 for a moment. Buffers,
        frozen parameters and the optimizer are left alone. All ranks of a site look together. No inner step may be made
        within it, and no sample drawn from `shard`. Of `ddp` phi are the weights of its last exchange of weights.

        Raises:
            ConfigError: it is a gossip run, which has no common weights; or this is within another one.
            UnreachableError: the daemon is gone, or gave nothing within the run's `wait_ceiling_s`.
            WantrainError: there is no room in shared memory.
        """
        return self._evaluating()

    def common_state_dict(self) -> dict[str, torch.Tensor]:
        """The run's common weights phi: name to fp32 tensor on the CPU, for another model or process.

        They are as of one log number and exact, whatever the dtype of this model. Names are the model's (without what
        torch.compile adds), of parameters that are trained, tied ones once:

            ema_model.load_state_dict(swarm.common_state_dict(), strict=False)

        Raises:
            ConfigError: it is a gossip run, which has no common weights.
            UnreachableError: the daemon is gone, or gave nothing within the run's `wait_ceiling_s`.
            WantrainError: there is no room in shared memory for an fp32 copy of the model.
        """
        self._look.refuse("swarm.common_state_dict")
        if self._ranked:
            raise ConfigError(
                "swarm.common_state_dict is for a trainer of one process, this one has several ranks",
                hint="use `with swarm.evaluating()` on all ranks, or a saved state: wantrain checkpoint save",
            )
        return self._replica.named(self._common()[1])

    def state_dict(self) -> dict[str, Any]:
        """What to put into a checkpoint of your own beside model and optimizer: plain numbers and text, fit for JSON.

        `run` (its id), `peer` (this peer's name), `round`, `global_step`, `own_steps` and `tokens` as they are now.
        """
        return {
            "run": self.run,
            "peer": self.peer,
            "round": self.round,
            "global_step": self.global_step,
            "own_steps": self.own_steps,
            "tokens": self._tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from what `state_dict` gave earlier; after `join`, before the first inner step.

        `own_steps` and `tokens` continue. Round, step and weights are the run's: `join` has taken over those of now,
        whatever was loaded into the model before, so a checkpoint of this kind brings back the inner optimizer's state
        and these counts. To bring back weights, see "Saved states" in the README.

        Raises:
            CheckpointError: it is of another run, or no such state.
            ConfigError: this trainer has made inner steps or counted tokens already.
        """
        counted = Counted.of(state, self.run)
        if self._core.step or self._tokens > self._counted.tokens:
            raise ConfigError(
                f"load_state_dict after {self._core.step} inner steps and {self._tokens} tokens, allowed is before any",
                hint="call it right after wantrain.join",
            )
        self._counted, self._tokens = counted, counted.tokens

    def save_inner(self, path: str | os.PathLike[str], scheduler: Scheduler | None = None) -> None:
        """Save what the run does not keep of this trainer: its inner optimizers' state, the model's buffers, the
        scheduler and `state_dict()`. Of several ranks all call it, and each writes its shards.

        Weights are the run's, so they are not saved, nor is what the method exchanges of the optimizers' state. Nothing
        is pickled: tensors are safetensors, the rest is JSON. What `path` held before is replaced when all is on disk.

        Args:
            path: a directory, which all ranks share.
            scheduler: of the learning rate.

        Raises:
            CheckpointError: it cannot be written.
            ConfigError: an option or a value of the scheduler is nothing that JSON can hold.
        """
        with self._unhooked():
            counts, exchanged = self.state_dict(), self._exchanged
            save(path, self._replica.model, self._optimizers, scheduler=scheduler, counts=counts, exchanged=exchanged)

    def load_inner(self, path: str | os.PathLike[str], scheduler: Scheduler | None = None) -> None:
        """Take over what `save_inner` saved; after `join`, before the first inner step. Any number of ranks may.

        With the same weights training goes on bit for bit as it would have. For what counts of it see
        `load_state_dict`.

        Args:
            path: as it was given to `save_inner`.
            scheduler: one like that.

        Raises:
            CheckpointError: there is none, it is damaged, or of another run, model, optimizer or scheduler; nothing has
                changed then.
            ConfigError: this trainer has made inner steps or counted tokens already.
        """
        with self._unhooked():
            load(
                path, self._replica.model, self._optimizers, scheduler=scheduler, exchanged=self._exchanged,
                accept=self.load_state_dict,
            )  # fmt: skip

    @property
    def _exchanged(self) -> set[str]:
        """Keys of the optimizers' state that are the run's."""
        keys = {stream.state for stream in self.streams} - {"param", "grad"}
        return keys | {STEP, MU_PRODUCT} if keys else keys

    def leave(self) -> None:
        """End this trainer's part: its peer finishes what is in flight and leaves the run. Again is fine.

        Raises:
            RefusedError: the daemon has refused a contribution; there is nothing to finish.
        """
        if not self.alone and self._segment is not None:
            if (wasted := self._core.wasted) is not None:
                logger.warning(
                    "training ends after %d inner steps, and stream %s is due after %d: none of it is in the run. "
                    "Lower `every` in run.toml, or train for longer",
                    *wasted,
                )
            self._leaving = True
            self._hand_over(wait=True)
            self._outbox += [*self._to_send(), Detach("training finished")]
            deadline = self._now() + LEAVE_PATIENCE_S
            while not (self._detached or self.alone):
                if self._now() > deadline:
                    logger.warning("the peer has not answered the leave for %.0f s", LEAVE_PATIENCE_S)
                    break
                self._poll(POLL_S)
        self.close()
        if self._own is not None:
            self._own.wait()

    def close(self) -> None:
        """Stop taking part at once, as after a crash: what was trained since the last exchange is not in the run.

        The model keeps its weights, and the optimizer has no hooks any more. Again is fine. A daemon that `join` has
        started leaves the run; one that has started this script starts it again if it fails; any other stays.
        """
        if self._inner is not None:
            self._inner.close()
            self._inner = None
        if not self._closed and not self._detached:
            self._link.send(DAEMON, pack(LetGo()))
        self._closed = self.alone = True
        self._to_start.clear()
        self._drop_segment()
        self._link.close(GOODBYE_S)
        if self._own is not None and not self._detached:
            self._own.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.leave()
        else:
            self.close()
