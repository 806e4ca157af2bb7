"""How metrics are declared: what is exported only once a process has something to say."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_E = TypeVar("_E")

_LONGEST_MS: Final = 1 << 42
_creating: Final = threading.RLock()
# Those that have been exported.
_of_work: Final[list[_OfWork]] = []

Combined = Literal["livesum", "livemax", "livemin"]
"""What the value of a gauge is for the processes of a service that are alive: prometheus-client's names."""


class Declared(ABC, Generic[_E]):
    """A metric, which is registered with prometheus-client when it is first used.

    Args:
        name: its name; that of a counter without `_total`.
        documentation: what it measures.
        labels: the names of its labels.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self._name = name
        self.documentation = documentation
        self.label_names = tuple(labels)
        self._exported: _E | None = None

    @property
    def name(self) -> str:
        """The name under which it is exported."""
        return self._name

    def export(self) -> _E:
        """Return what counts, and export it from now on. A metric without labels begins with 0."""
        exported = self._exported
        if exported is None:
            with _creating:
                exported = self._exported
                if exported is None:
                    exported = self._exported = self._create()
        return exported

    @abstractmethod
    def _create(self) -> _E:
        """Create what counts."""


class DeclaredCounter(Declared[Counter]):
    """A number that only grows."""

    kind = "counter"

    @property
    def name(self) -> str:
        """The name under which it is exported."""
        return f"{self._name}_total"

    def inc(self, amount: float = 1) -> None:
        """Add to a counter without labels."""
        self.export().inc(amount)

    def labels(self, *values: str) -> Counter:
        """Return the counter with these values of the labels."""
        return self.export().labels(*values)

    def _create(self) -> Counter:
        return Counter(self._name, self.documentation, self.label_names)


class DeclaredGauge(Declared[Gauge]):
    """A number that each process of a service has.

    Args:
        name: its name.
        documentation: what it measures.
        labels: the names of its labels.
        combined: what the processes of a service export together.
    """

    kind = "gauge"

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, combined: Combined
    ) -> None:
        super().__init__(name, documentation, labels)
        self._combined = combined

    def set(self, value: float, *labels: str) -> None:
        """Set the number of this process."""
        gauge = self.export()
        (gauge.labels(*labels) if labels else gauge).set(value)

    def _create(self) -> Gauge:
        return Gauge(self._name, self.documentation, self.label_names, multiprocess_mode=self._combined)


class WorkGauge(Declared["_OfWork"]):
    """A number that running work has, exported as long as the work runs.

    Args:
        name: its name.
        documentation: what it measures.
        labels: the names of its labels.
        combined: whether work with the same labels, such as two consumers of a cache, exports the sum or the
            highest of its numbers.
    """

    kind = "gauge"

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        combined: Literal["sum", "max"] = "max",
    ) -> None:
        super().__init__(name, documentation, labels)
        self.combined = combined

    def set(self, work: object, value: float, *labels: str) -> None:
        """Set a number of running work."""
        self.export().set(work, value, labels)

    def replace(self, work: object, values: Mapping[tuple[Any, ...], float]) -> None:
        """Set all numbers of running work, by the values of their labels."""
        self.export().replace(work, values)

    def _create(self) -> _OfWork:
        return _OfWork(self)


def forget(*work: object) -> None:
    """Export nothing more about work that has ended, or about which nothing is known any longer."""
    for gauge in tuple(_of_work):
        for one in work:
            gauge.forget(one)


class _OfWork(Collector):
    """The numbers of the running work of this process."""

    def __init__(self, declared: WorkGauge) -> None:
        self._declared = declared
        self._values: WeakKeyDictionary[object, dict[tuple[str, ...], float]] = WeakKeyDictionary()
        self._lock = threading.Lock()
        REGISTRY.register(self)
        _of_work.append(self)

    def set(self, work: object, value: float, labels: tuple[str, ...]) -> None:
        with self._lock:
            self._values.setdefault(work, {})[labels] = value

    def replace(self, work: object, values: Mapping[tuple[Any, ...], float]) -> None:
        with self._lock:
            self._values[work] = dict(values)

    def forget(self, work: object) -> None:
        with self._lock:
            self._values.pop(work, None)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        combined: dict[tuple[str, ...], float] = {}
        with self._lock:
            for values in self._values.values():
                for labels, value in values.items():
                    other = combined.get(labels)
                    if other is None:
                        combined[labels] = value
                    else:
                        combined[labels] = (
                            other + value if self._declared.combined == "sum" else max(other, value)
                        )
        if combined:
            declared = self._declared
            family = GaugeMetricFamily(
                declared.name, declared.documentation, labels=list(declared.label_names)
            )
            for labels, value in combined.items():
                family.add_metric(labels, value)
            yield family


class LagHistogram(Declared["_Lags"]):
    """A histogram of lags per service, which counts those of a batch at once.

    `Histogram.observe` takes as long for one lag as everything else that a stream does for a change.

    Args:
        name: the name of the metric.
        documentation: what it measures.
        buckets: the upper bounds of the buckets, in seconds.
    """

    kind = "histogram"

    def __init__(self, name: str, documentation: str, buckets: tuple[float, ...]) -> None:
        super().__init__(name, documentation, ["service"])
        self.buckets = buckets

    def labels(self, service: str) -> ServiceLag:
        """Return the lags of a service."""
        return self.export().of(service)

    def _create(self) -> _Lags:
        return _Lags(self)


class _Lags(Collector):
    """The lags of the services whose streams run, or have run, in this process."""

    def __init__(self, declared: LagHistogram) -> None:
        self._declared = declared
        self._services: dict[str, ServiceLag] = {}
        REGISTRY.register(self)

    def of(self, service: str) -> ServiceLag:
        return self._services.setdefault(service, ServiceLag(self._declared.buckets))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            self._declared.name, self._declared.documentation, labels=list(self._declared.label_names)
        )
        for service, lag in self._services.copy().items():
            family.add_metric([service], *lag.counted())
        yield family


class ServiceLag:
    """The lags of a service.

    Args:
        bounds: the upper bounds of the buckets, in seconds.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = [*(round(1000 * bound) for bound in bounds), float("inf")]
        self._names = [*(str(float(bound)) for bound in bounds), "+Inf"]
        self._counts = [0] * len(self._bounds)
        self._sum = 0
        self._lock = threading.Lock()

    def observe_milliseconds(self, lags: Iterable[int]) -> None:
        """Count lags in milliseconds; impossible ones, as from differing clocks, as the nearest possible."""
        in_order = sorted(lags)
        if in_order and (in_order[0] < 0 or in_order[-1] > _LONGEST_MS):
            in_order = [min(max(0, lag), _LONGEST_MS) for lag in in_order]
        counts = []
        start = 0
        for bound in self._bounds:
            end = bisect_right(in_order, bound, start)
            counts.append(end - start)
            start = end
        with self._lock:
            self._sum += sum(in_order)
            self._counts = [count + more for count, more in zip(self._counts, counts, strict=True)]

    def counted(self) -> tuple[list[tuple[str, float]], float]:
        """Return the number of lags up to each bound, by its name, and the sum of all lags in seconds."""
        with self._lock:
            counts, total = self._counts, self._sum
        up_to = accumulate(counts)
        return list(zip(self._names, up_to, strict=True)), total / 1000
