"""A plan in words: for `wantrain plan`, and the tables of docs/deploy.md."""

from wantrain.plan import WAITING_SHARE, Plan, StreamPlan

_SCALES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(size_bytes: float) -> str:
    """Bytes in decimal units, three digits."""
    scale, unit = next(((scale, unit) for scale, unit in _SCALES if size_bytes >= scale), (1.0, "B"))
    return f"{_three(size_bytes / scale)} {unit}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, three digits."""
    scale, unit = (3600.0, "h") if seconds >= 7200 else (60.0, "min") if seconds >= 120 else (1.0, "s")
    return f"{_three(seconds / scale)} {unit}"


def share(value: float) -> str:
    """A part of a whole in per cent."""
    return f"{_three(100 * value)} %"


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def every(found: Plan) -> str:
    """How the run's periods are told: of all streams that are alike, once."""
    kinds = dict.fromkeys(stream.every for stream in found.streams)
    return " and ".join(f"every {count:,} step{'s' * (count > 1)}" for count in kinds)


def words(found: Plan) -> list[tuple[str, str]]:
    """Lines of (what, how much)."""
    wanted, streams = found.wanted, found.streams
    longest = max(streams, key=lambda stream: stream.sync_s)
    codecs = ", ".join(dict.fromkeys(f"{stream.codec} up, {stream.down} down" for stream in streams))
    syncs = f"{len(streams)} streams" if len(streams) > 1 else "one stream"
    lines = [
        ("model", f"{wanted.params:,} values, {size(found.model_bytes)} as fp32"),
        ("method", f"{wanted.method}: {syncs}, {every(found)} of {duration(found.step_s)}; {codecs}"),
        ("each peer sends", f"{_per_sync(streams)}, {size(found.bytes_per_day)} a day; it receives as much"),
        (
            "a sync takes",
            f"{duration(longest.sync_s)} ({longest.topology or 'alone'})" + _delays(longest, found.step_s),
        ),
        ("training waits", f"{share(found.waiting_share)} of the time"),
        ("lines in use", f"{share(found.line_share)} of the time" + _overload(found)),
    ]
    if found.shortest_every is not None:
        why = f"from there on at most {share(WAITING_SHARE)} of the time is waited, and the lines keep up"
        lines.append(("shortest useful H", f"{found.shortest_every:,} steps: {why}"))
    return [
        *lines,
        ("daemon's memory", f"{size(found.memory_bytes)}, {size(found.log_bytes)} of it for the update log"),
        ("/dev/shm", f"{size(found.shared_bytes)}, part of that"),
        ("disk", f"{size(found.disk_bytes)} for saved states of {size(found.state_bytes)}"),
    ]


def _per_sync(streams: tuple[StreamPlan, ...]) -> str:
    sizes = [stream.sent_bytes for stream in streams]
    least, most = size(min(sizes)), size(max(sizes))
    return f"{most} a sync" if least == most else f"{least} to {most} a sync"


def _delays(longest: StreamPlan, step_s: float) -> str:
    if longest.delay is None:
        return ", training goes on until it is over"
    return f", training goes on for {duration(longest.delay * step_s)} of it" if longest.delay else ""


def _overload(found: Plan) -> str:
    return ": they cannot keep up" if found.line_share > 1 else ""
