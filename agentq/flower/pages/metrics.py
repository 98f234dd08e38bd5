"""The metrics page: Flower's own figures and the fleet's, in one answer."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry
from tornado.web import authenticated

from agentq.flower.pages.tab import Route, Tab
from agentq.seeing.metrics import FleetCollector


class Metrics(Tab):
    """Flower's own metrics and the fleet's, for Prometheus; asked for off the loop, behind the login."""

    @authenticated
    async def get(self) -> None:
        application = self.application
        application.purge_offline_worker_metrics()
        if not hasattr(application, "agentq_metrics"):
            application.agentq_metrics = CollectorRegistry()
            tenants = self.client.settings.metrics_tenants
            application.agentq_metrics.register(FleetCollector(self.store, tenants_max=tenants))
        ours = application.agentq_metrics
        text = await self.ask(lambda: prometheus_client.generate_latest() + prometheus_client.generate_latest(ours))
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(text)


ROUTES = (Route("aq-metrics", r"/metrics", Metrics),)
