"""
Tabs: agentq's pages inside stock Flower, in its look, behind its login.

Flower has no hook for pages. So its application is subclassed, routes go ahead of its own by Tornado's
`add_handlers`, templates are found here first, and links are put into its navigation bar. That bar is
the only part of Flower whose text matters; a test holds it, and Flower is pinned to a minor release.
"""

from __future__ import annotations

import os
from importlib.resources import files
from typing import Any

from flower.app import Flower
from flower.urls import settings as flower_settings
from tornado.template import BaseLoader, Template
from tornado.web import StaticFileHandler, url

from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import ConfigError
from agentq.flower import pages
from agentq.settings import Settings, load

_OURS = files("agentq.flower") / "templates"

TABS = (
    ("aq-sessions", "Sessions", pages.Sessions, r"/sessions"),
    ("aq-letters", "Dead letters", pages.DeadLetters, r"/dead-letters"),
    ("aq-approvals", "Approvals", pages.Approvals, r"/approvals"),
    ("aq-tenants", "Tenants", pages.Tenants, r"/tenants"),
    ("aq-cost", "Cost", pages.Cost, r"/cost"),
    ("aq-health", "Health", pages.Health, r"/health"),
)


class Templates(BaseLoader):
    """Our templates, then Flower's; its navigation bar with our tabs in it."""

    def __init__(self, theirs: str) -> None:
        super().__init__()
        self._theirs = theirs

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name

    def _create_template(self, name: str) -> Template:
        ours = _OURS / name
        if "/" not in name and ours.is_file():
            text = ours.read_text("utf-8")
        else:
            with open(os.path.join(self._theirs, name), encoding="utf-8") as file:
                text = file.read()
        if name == "navbar.html":
            text = with_tabs(text)
        return Template(text, name=name, loader=self)


def with_tabs(navbar: str) -> str:
    """
    Flower's navigation bar with our tabs behind its own.

    Raises:
        ConfigError: this Flower's bar is another one.
    """
    head, end, tail = navbar.partition("</ul>")
    if not end or "reverse_url('broker')" not in head:
        raise ConfigError("this Flower's navigation bar is not one that agentq knows: install flower>=2.2,<2.3")
    items = "".join(
        f"""<li class="nav-item"><a class="nav-link{{% if active_tab == '{name}' %}} active{{% end %}}" """
        f"""href="{{{{ reverse_url('{name}') }}}}" """
        f"""{{% if active_tab == '{name}' %}}aria-current="page"{{% end %}}>{title}</a></li>\n"""
        for name, title, _, _ in TABS
    )
    return f"{head}{items}{end}{tail}"


class TabbedFlower(Flower):  # type: ignore[misc]
    """Flower with agentq's tabs."""

    def __init__(self, options: Any = None, **more: Any) -> None:
        more.setdefault("template_loader", Templates(flower_settings["template_path"]))
        super().__init__(options=options, **more)
        self.agentq: Client = more.get("agentq") or _client(load())
        prefix = f"/{self.options.url_prefix.strip('/')}" if self.options.url_prefix else ""
        self.add_handlers(r".*", routes(prefix))

    def stop(self) -> None:
        super().stop()
        self.agentq.close()


def routes(prefix: str) -> list[Any]:
    """Our pages, ahead of Flower's."""
    session = r"/session/(?P<tenant>[a-z0-9][a-z0-9_-]{0,62})/(?P<session_id>[0-9a-f-]{36})"
    return [
        *(url(f"{prefix}{pattern}", handler, name=name) for name, _, handler, pattern in TABS),
        url(f"{prefix}{session}", pages.OneSession, name="aq-session"),
        url(rf"{prefix}{session}/(?P<action>pause|resume|cancel|replay|fork)", pages.SessionAction, name="aq-act"),
        url(rf"{prefix}/dead-letters/(?P<action>redrive|discard)", pages.LetterAction, name="aq-letters-act"),
        url(rf"{prefix}/approvals/(?P<action>grant|deny)", pages.ApprovalAction, name="aq-approvals-act"),
        url(rf"{prefix}/tenants/set", pages.TenantAction, name="aq-tenants-act"),
        url(rf"{prefix}/metrics", pages.Metrics),
        url(
            rf"{prefix}/agentq/static/(.*)",
            StaticFileHandler,
            {"path": str(files("agentq.flower") / "static")},
            name="aq-static",
        ),
    ]


def _client(settings: Settings) -> Client:
    try:
        return Client(settings)
    except ConfigError:
        # The tabs need no agents; only editing a dead letter's state does.
        return Client(settings, Registry())


def install() -> None:
    """Let Flower's own command start this application."""
    import flower.command

    flower.command.Flower = TabbedFlower
