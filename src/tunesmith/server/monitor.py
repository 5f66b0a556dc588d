"""The server's numbers for Prometheus: `tunesmith_*`, base units, labels from bounded sets only.

Each app has its own registry, so several servers (and tests) live in one process. Process CPU and memory keep the
names every dashboard knows (`process_cpu_seconds_total`, `process_resident_memory_bytes`).
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

MAX_ADAPTERS = 64
"""Adapters that have a label of their own; the rest count as `other`."""
FEEDBACK_NAMES = frozenset({"thumbs", "correction"})
FEEDBACK_VALUES = frozenset({"up", "down", "corrected"})
ENDPOINTS = frozenset(
    {
        "/v1/models",
        "/v1/models/{model:path}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/feedback",
        "/livez",
        "/readyz",
        "/metrics",
    }
)
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Monitor:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._adapters: set[str] = set()
        ProcessCollector(registry=self.registry)
        self._make_gauges()
        self._make_counters()
        self._make_histograms()

    def _make_gauges(self) -> None:
        self.running = self._gauge("num_requests_running", "Requests that are generating.")
        self.waiting = self._gauge("num_requests_waiting", "Requests that wait for a place.")
        self.adapters_loaded = self._gauge("adapters_loaded", "Adapters that are in memory.")

    def _make_counters(self) -> None:
        self.requests = self._counter(
            "requests_total", "Requests that were answered.", "endpoint", "status", "finish_reason"
        )
        self.rejections = self._counter("admission_rejections_total", "Requests that were turned away.", "reason")
        self.prompt_tokens = self._counter("prompt_tokens_total", "Tokens read from prompts.")
        self.generation_tokens = self._counter("generation_tokens_total", "Tokens generated.")
        self.adapter_requests = self._counter("adapter_requests_total", "Requests by served model.", "adapter")
        self.nan_logits = self._counter("nan_logits_total", "Sequences ended because the model gave no number.")
        self.feedback = self._counter("feedback_total", "Judgements received.", "name", "value")

    def _make_histograms(self) -> None:
        self.first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", LATENCY)
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens of a sequence.", LATENCY)
        self.latency = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", LATENCY)
        self.queue_time = self._histogram("request_queue_time_seconds", "From arrival to the first step.", LATENCY)
        self.request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self.request_generation = self._histogram("request_generation_tokens", "Tokens generated for it.", TOKENS)

    def watch(self, *, running: Callable[[], float], waiting: Callable[[], float], loaded: Callable[[], float]) -> None:
        """Read the gauges from their owners whenever they are scraped."""
        self.running.set_function(running)
        self.waiting.set_function(waiting)
        self.adapters_loaded.set_function(loaded)

    def count_request(self, endpoint: str, status: int, finish_reason: str = "") -> None:
        """One answered request; an address that does not exist counts as `other`."""
        place = endpoint if endpoint in ENDPOINTS else "other"
        self.requests.labels(place, str(status), finish_reason).inc()

    def count_adapter(self, name: str) -> None:
        """One request for a served model."""
        if name not in self._adapters and len(self._adapters) < MAX_ADAPTERS:
            self._adapters.add(name)
        self.adapter_requests.labels(name if name in self._adapters else "other").inc()

    def count_feedback(self, name: str, value: str) -> None:
        """One judgement; names and values that people made up count as `other`."""
        self.feedback.labels(
            name if name in FEEDBACK_NAMES else "other", value if value in FEEDBACK_VALUES else "other"
        ).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The numbers as text, and their content type, in the form the scraper asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, namespace="tunesmith", registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="tunesmith", registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, namespace="tunesmith", registry=self.registry, buckets=buckets)
