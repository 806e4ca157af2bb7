"""The histogram on prometheus-client's internals, compared with the real class."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram

from serving.prometheus_internals import BufferedHistogram


def samples(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def test_histogram_counts_in_memory_until_it_shares() -> None:
    plain, buffered = CollectorRegistry(), CollectorRegistry()
    buckets = (0.5, 1, 2)
    reference = Histogram("seconds", "", ["method"], buckets=buckets, registry=plain).labels("GET")
    histogram = BufferedHistogram("seconds", "", ["method"], buckets=buckets, registry=buffered).labels("GET")
    for _ in range(2):
        before = samples(buffered)
        for amount in (0, 0.5, 0.75, 1, 1.5, 7):
            reference.observe(amount)
            histogram.observe(amount)
        assert samples(buffered) == before
        histogram.share()
        assert samples(buffered) == samples(plain) != before
