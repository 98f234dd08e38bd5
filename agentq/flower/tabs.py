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
from agentq.flower import broker
from agentq.flower.guard import guarded
from agentq.flower.pages import ROUTES
from agentq.settings import Settings, load

_OURS = files("agentq.flower") / "templates"


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
        for name, title in tabs()
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


def tabs() -> list[tuple[str, str]]:
    """The routes that are tabs, by name and title, in the order of the bar."""
    return [(route.name, route.title) for route in ROUTES if route.title is not None]


def routes(prefix: str) -> list[Any]:
    """Our pages, and Flower's own under our roles, ahead of Flower's."""
    return [
        *guarded(prefix),
        *(url(f"{prefix}{route.pattern}", route.handler, name=route.name) for route in ROUTES),
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
    broker.install()
