"""What `/metrics` tells, in Prometheus's text form."""

from __future__ import annotations

from collections import Counter as Tallies
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ziphius.disk.memory import bytes_read
from ziphius.engine.request import EngineStats
from ziphius.serve.contracts.price import Rate
from ziphius.serve.contracts.usage import Tally, Usage
from ziphius.serve.wire.runner import Runner

_FIRST = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TOKEN = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_WHOLE = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of requests, and the engine's own numbers at the moment they are asked for."""

    def __init__(self, runners: Sequence[Runner], rate: Rate) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self._requests = counter("ziphius_requests", "Requests by path and status", ["path", "status"])
        self._prompt = counter("ziphius_prompt_tokens", "Prompt tokens by cache", ["cache"])
        self._answer = counter("ziphius_completion_tokens", "Tokens written, by part", ["part"])
        self._dollars = counter("ziphius_request_dollars", "Cost of the requests' shares of the engine's time")
        self._listed = counter("ziphius_list_price_dollars", "What the same tokens cost by the price list")
        self._first = histogram("ziphius_first_token_seconds", "Time to first token", buckets=_FIRST)
        self._token = histogram("ziphius_token_seconds", "Mean time a token after the first", buckets=_TOKEN)
        self._whole = histogram("ziphius_request_seconds", "Time of a whole request", buckets=_WHOLE)
        self._owner_requests = counter("ziphius_owner_requests", "Requests by owner", ["owner"])
        self._owner_tokens = counter("ziphius_owner_tokens", "Tokens by owner and kind", ["owner", "kind"])
        self._owner_seconds = counter("ziphius_owner_seconds", "Shares of the engine's time by owner", ["owner"])
        self._owner_dollars = counter("ziphius_owner_dollars", "Cost of those shares by owner", ["owner"])
        self.registry.register(_EngineNumbers(runners, rate))

    def count_request(self, path: str, status: int, party: str) -> None:
        """Count a request of a `party`, which is a key of the file's or an address."""
        self._requests.labels(path, str(status)).inc()
        self._owner_requests.labels(_label(party)).inc()

    def watch_connections(self, door: Connections) -> None:
        """Tell of the connections that are open and of those that had to go."""
        self.registry.register(_ConnectionNumbers(door))

    def watch_log(self, dropped: Callable[[], int]) -> None:
        """Tell of the lines of the log that nobody read."""
        counter = Gauge("ziphius_log_lines_dropped", "Lines of the log that nobody read", registry=self.registry)
        counter.set_function(dropped)

    def count(self, party: str, seconds: float, first: float | None, tally: Tally, used: Usage | None) -> None:
        """Count what a request that was taken in used until its end; `used` is None where the engine never had it."""
        self._prompt.labels("hit").inc(tally.cached)
        self._prompt.labels("miss").inc(tally.prompt - tally.cached)
        self._answer.labels("reasoning").inc(tally.reasoning)
        self._answer.labels("answer").inc(tally.completion - tally.reasoning)
        self._whole.observe(seconds)
        if first is not None:
            self._first.observe(first)
            if tally.completion > 1:
                self._token.observe((seconds - first) / (tally.completion - 1))
        if used is not None:
            self._count_owner(_label(party), tally, used)
            self._dollars.inc(used.ziphius.dollars)
            self._listed.inc(used.ziphius.list_price.dollars if used.ziphius.list_price else 0.0)

    def _count_owner(self, owner: str, tally: Tally, used: Usage) -> None:
        for kind, tokens in (
            ("cached", tally.cached),
            ("read", tally.prompt - tally.cached),
            ("written", tally.completion),
        ):
            self._owner_tokens.labels(owner, kind).inc(tokens)
        self._owner_seconds.labels(owner).inc(used.ziphius.engine_seconds)
        self._owner_dollars.labels(owner).inc(used.ziphius.dollars)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Connections(Protocol):
    """What `ziphius.serve.wire.door.Door` tells."""

    @property
    def open(self) -> Collection[object]: ...
    @property
    def most(self) -> int: ...
    @property
    def turned_away(self) -> Mapping[str, int]: ...


class _ConnectionNumbers:
    def __init__(self, door: Connections) -> None:
        self._door = door

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("ziphius_connections", "Connections that are open", len(self._door.open))
        yield GaugeMetricFamily("ziphius_connections_limit", "As many may be open", self._door.most)
        away = CounterMetricFamily(
            "ziphius_connections_turned_away", "Connections closed, by reason", labels=["reason"]
        )
        for reason, times in sorted(self._door.turned_away.items()):
            away.add_metric([reason], times)
        yield away


class _EngineNumbers:
    """The engines' state, added up, as Prometheus metrics."""

    def __init__(self, runners: Sequence[Runner], rate: Rate) -> None:
        self._runners, self._rate = runners, rate

    def collect(self) -> Iterator[Metric]:
        stats = EngineStats.total([runner.stats for runner in self._runners])
        busy = sum(runner.busy_seconds for runner in self._runners)
        for name, value, what in (
            ("blocks_total", stats.blocks_total, "Blocks of the latent cache"),
            ("blocks_used", stats.blocks_used, "Blocks held by running samples"),
            ("blocks_cached", stats.blocks_cached, "Blocks kept for later prompts"),
            ("samples_running", stats.running, "Samples in the batch"),
            ("samples_waiting", stats.waiting, "Samples in the queue"),
            ("dollars_per_hour", self._rate.dollars_per_hour, "The machine's rate"),
        ):
            yield GaugeMetricFamily(f"ziphius_{name}", what, value)
        for name, value, what in (
            ("engine_preemptions", stats.preemptions, "Samples put back into the queue to make room"),
            ("engine_hit_tokens", stats.hit_tokens, "Prompt tokens found in the prefix cache"),
            ("engine_miss_tokens", stats.miss_tokens, "Prompt tokens read by the network"),
            ("engine_generated_tokens", stats.generated_tokens, "Tokens drawn"),
            ("engine_drafted_tokens", stats.drafted_tokens, "Tokens drafted by the prediction module"),
            ("engine_accepted_tokens", stats.accepted_tokens, "Drafted tokens that were right"),
            ("engine_disk_read_bytes", bytes_read(), "Read from disk: of a network larger than memory, its experts"),
            ("engine_busy_seconds", busy, "Time the engine worked"),
        ):
            yield CounterMetricFamily(f"ziphius_{name}", what, value=value)
        samples: Tallies[tuple[str, str]] = Tallies()
        for owner, (running, waiting) in stats.owners.items():
            samples[_label(owner), "running"] += running
            samples[_label(owner), "waiting"] += waiting
        family = GaugeMetricFamily("ziphius_owner_samples", "Samples by owner and state", labels=["owner", "state"])
        for labels, count in samples.items():
            family.add_metric(labels, count)
        yield family


def _label(party: str) -> str:
    """A key's name; addresses are `anyone` together, for they would make labels without end."""
    return party.removeprefix("key ") if party.startswith("key ") else "anyone"
