"""What Prometheus may read. Labels are few and ours: routes, methods, states; never prompts, keys or ids."""

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

from limner.serve.engine import Health
from limner.serve.jobs import State

METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class Metrics:
    """The numbers of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "limner_requests",
            "Answers given.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "limner_request_seconds",
            "Until an answer was complete.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.jobs = Gauge("limner_jobs", "Jobs in the database.", ("state",), registry=self.registry)
        self.workers = Gauge("limner_workers", "Processes ready to draw.", registry=self.registry)
        self.wanted = Gauge("limner_workers_wanted", "Processes there should be.", registry=self.registry)
        self.running = Gauge("limner_running", "Jobs being drawn here.", registry=self.registry)
        self.restarts = Gauge("limner_worker_restarts", "Processes that died.", registry=self.registry)
        self.up = Gauge("limner_start_time_seconds", "Since when, as Unix time.", registry=self.registry)
        self.up.set(time.time())

    def seen(self, scope: Scope, status: int, seconds: float) -> None:
        """An answer was given; status 0: the client was gone before."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.requests.labels(method, route, str(status or 499)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self, counts: Mapping[State, int], health: Health) -> bytes:
        """As Prometheus reads it."""
        for state in State:
            self.jobs.labels(state.value).set(counts.get(state, 0))
        self.workers.set(health.workers)
        self.wanted.set(health.wanted)
        self.running.set(health.running)
        self.restarts.set(health.restarts)
        return generate_latest(self.registry)
