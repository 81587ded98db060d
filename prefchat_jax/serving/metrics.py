"""Metrics: counts and histograms in Prometheus' text format.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import bisect
import threading
import time
from collections.abc import Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

Labels = tuple[tuple[str, str], ...]


class Counter:
    """Numbers that only grow, one for each set of labels."""

    kind = "counter"

    def __init__(self, name: str, about: str):
        self.name, self.about = name, about
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float = 1, **labels: str) -> None:
        """Adds to the number of these labels."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def samples(self) -> list[str]:
        """The lines of the exposition."""
        with self._lock:
            values = sorted(self._values.items()) or [((), 0)]
        return [_sample(self.name, labels, value) for labels, value in values]


class Gauge(Counter):
    """Numbers that grow and shrink."""

    kind = "gauge"

    def set(self, value: float, **labels: str) -> None:
        """Replaces the number of these labels."""
        with self._lock:
            self._values[tuple(sorted(labels.items()))] = value


class Histogram:
    """How many observations lie below each bound, their sum and their number."""

    kind = "histogram"

    def __init__(self, name: str, about: str, bounds: Sequence[float]):
        self.name, self.about = name, about
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Counts one observation."""
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, value)] += 1
            self._sum += value

    def samples(self) -> list[str]:
        """The lines of the exposition; a bound counts all that lies below it."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines, below = [], 0
        for bound, count in zip((*self._bounds, "+Inf"), counts, strict=True):
            below += count
            at = f"{bound:g}" if isinstance(bound, float) else bound
            lines.append(_sample(f"{self.name}_bucket", (("le", at),), below))
        lines.append(_sample(f"{self.name}_sum", (), total))
        lines.append(_sample(f"{self.name}_count", (), below))
        return lines


class Metrics:
    """All that a server counts. Safe in any thread."""

    def __init__(self):
        self.requests = Counter(
            "prefchat_requests_total", "Requests by route and status."
        )
        self.seconds = Histogram(
            "prefchat_request_seconds", "From a request to its whole answer.", _SECONDS
        )
        self.in_flight = Gauge("prefchat_in_flight", "Requests being answered.")
        self.batches = Histogram(
            "prefchat_batch_size", "Requests that were answered at once.", _SIZES
        )
        self.abstentions = Counter(
            "prefchat_abstentions_total", "Replies below the confidence threshold."
        )
        self.feedback = Counter(
            "prefchat_feedback_total", "Preference pairs that were stored."
        )
        self.stored = Gauge("prefchat_stored_answers", "Answers in the database.")
        self.cpu = Gauge("prefchat_cpu_seconds", "Processor time since the start.")

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        self.cpu.set(time.process_time())
        lines = []
        for metric in vars(self).values():
            lines.append(f"# HELP {metric.name} {metric.about}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines += metric.samples()
        return "\n".join(lines) + "\n"


def _sample(name: str, labels: Labels, value: float) -> str:
    return f"{name}{_braced(dict(labels))} {value:.12g}"


def _braced(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
