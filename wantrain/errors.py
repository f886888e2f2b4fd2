"""The one exception tree: every error a user can meet, with its exit code and the next step to take."""


class WantrainError(Exception):
    """Base of all errors of wantrain.

    Args:
        message: what is wrong, with the value that was found and what is allowed.
        hint: the next step for the user; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.hint}" if self.hint else self.message


class ConfigError(WantrainError):
    """A run spec, option or argument that cannot be used."""

    exit_code = 2


class InviteError(WantrainError):
    """An invite that is malformed, forged, expired, used up or for another run."""

    exit_code = 3


class RefusedError(WantrainError):
    """The run refuses this peer: other protocol version, other run, unknown key, identity in use."""

    exit_code = 3


class ModelMismatchError(RefusedError):
    """The trainer's model is not the run's: names, shapes or dtypes differ; the message lists them."""


class UnreachableError(WantrainError):
    """Nobody answers at an address, or the link was lost for longer than its deadline."""

    exit_code = 4


class AddressInUseError(WantrainError):
    """A port or socket is taken by another process."""

    exit_code = 5


class StoreError(WantrainError):
    """The coordinator's database cannot be read or written; nothing is decided until it can."""

    exit_code = 6


class TrainerError(WantrainError):
    """The training process failed more often than the daemon may restart it."""

    exit_code = 7


class CheckpointError(WantrainError):
    """A saved state that cannot be written, is damaged or unfinished, or does not fit."""

    exit_code = 8


class WireError(WantrainError):
    """Bytes from the network that are not a valid message; dropped and counted, never fatal."""


class CodecError(WantrainError):
    """Encoded bytes that do not decode to finite values of the expected size, or input that is not finite."""


class ProtocolBug(AssertionError):  # noqa: N818 - a bug of ours, not an error of a user
    """Our own mistake: a core met an event that its transition table does not list; carries its history."""


def kind_named(name: str) -> type[WantrainError] | None:
    """The class of an error that another process names; None if there is none of that name here."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, WantrainError) else None
