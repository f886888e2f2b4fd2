"""The HTTP endpoint from which Prometheus reads a daemon's metrics: a thread that only ever sees finished snapshots."""

from collections.abc import Iterable, Iterator
from typing import Any

from wantrain.addresses import join_address, split_address
from wantrain.errors import AddressInUseError, ConfigError
from wantrain.metrics.families import BOUNDS_S, Family
from wantrain.metrics.ledger import Distribution, Labels, Snapshot

LOOPBACK = "127.0.0.1"


def metrics_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT", ":PORT" or "PORT"; the loopback where no host is named, port 0 for any free one.

    Raises:
        ConfigError: not of that form.
    """
    where = text if ":" in text else f":{text}"
    try:
        return split_address(where if not where.startswith(":") else f"{LOOPBACK}{where}", lowest_port=0)
    except ConfigError:
        raise ConfigError(
            f"--metrics is {text!r}, allowed is HOST:PORT, or a PORT of the loopback",
            hint="write it like 127.0.0.1:9464 or 9464; port 0 takes any that is free",
        ) from None


class Endpoint:
    """Serves `snapshot`, which its owner replaces, until `close`.

    Args:
        address: "HOST:PORT" as `metrics_address` has it.
        families: what to serve.

    Raises:
        ConfigError: a bad address, one that is not this host's, or prometheus-client is not installed.
        AddressInUseError: the port is taken.
    """

    def __init__(self, address: str, families: Iterable[Family]) -> None:
        host, port = metrics_address(address)
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError:
            raise ConfigError(
                "--metrics needs prometheus-client, which is not installed", hint="pip install 'wantrain[metrics]'"
            ) from None
        self.snapshot = Snapshot()
        self._families = tuple(families)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Collector(self))
        try:
            self._server, self._thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise AddressInUseError(
                f"cannot serve metrics at {join_address(host, port)}: {error.strerror or error}",
                hint="choose another port or one of this host's addresses; --metrics 0 takes any free port",
            ) from None
        self.address = join_address(host, self._server.server_port)
        """Where it listens."""

    def collect(self) -> Iterator[Any]:
        """The present snapshot in the form of prometheus_client."""
        snapshot = self.snapshot
        for family in self._families:
            yield _family(family, snapshot)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        return self._endpoint.collect()


def _family(family: Family, snapshot: Snapshot) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, row in snapshot.distributions.get(family.name, {}).items():
            histogram.add_metric(labels, _buckets(row), row.total)
        return histogram
    of_kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    made = of_kind(family.name, family.help, labels=family.labels)
    rows: Iterable[tuple[Labels, float]] = snapshot.values.get(family.name, {}).items()
    for labels, value in rows:
        made.add_metric(labels, value)
    return made


def _buckets(row: Distribution) -> list[tuple[str, float]]:
    """(upper bound, how many values are at most that), as the format wants it."""
    bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    return [(bound, float(sum(row.counts[: k + 1]))) for k, bound in enumerate(bounds)]
