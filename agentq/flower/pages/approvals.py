"""The Approvals tab: what waits for people, granted, denied or edited there."""

from __future__ import annotations

from typing import Any

from tornado.web import authenticated

from agentq.client.approvals import Who
from agentq.errors import InvalidInput
from agentq.flower.pages.tab import Action, Route, Tab
from agentq.payload import decode
from agentq.seeing import page as parts
from agentq.seeing.tracing import redactor_of

WAITING_MAX = 100


class Approvals(Tab):
    """What waits for people, by its deadline."""

    tab = "aq-approvals"

    @authenticated
    async def get(self) -> None:
        tenant = self.chosen("tenant", "tenant")
        redact = redactor_of(self.client.settings).value

        def question() -> list[Any]:
            views = self.client.approvals.waiting(tenant=tenant, limit=WAITING_MAX)
            return [(view, redact("input", dict(view.args)), redact("input", view.details)) for view in views]

        self.show("aq_approvals.html", tenant=tenant, waiting=await self.ask(question), pre=parts.pre, most=WAITING_MAX)


class ApprovalAction(Action):
    """Grant or deny, as the person who is logged in; edited arguments as `path=value` lines."""

    tab = "aq-approvals"

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        approvals = self.client.approvals
        approval, tenant = self.chosen("approval") or "", self.chosen("tenant", "tenant")
        here = str(self.reverse_url("aq-approvals"))
        who = self._who(user)
        if place["action"] == "deny":
            view = approvals.deny(approval, reason=reason, tenant=tenant, who=who)
        else:
            edits = _edits(self.get_argument("edits", "", escape=False) or "")
            view = approvals.grant(approval, reason=reason, edits=edits, tenant=tenant, who=who)
        return f"{view.name}: {view.state}", here

    def _who(self, user: str) -> Who:
        """The login is the proof; groups and tenants are those of the settings."""
        approvers = self.client.settings.approvers
        if not approvers:
            return Who(user, "login")
        known = approvers.get(user)
        if known is None:
            raise InvalidInput(f"{user} is no approver: the settings (approvers) know nobody of that name")
        return Who(user, "login", known.groups, known.tenants)


def _edits(text: str) -> dict[str, Any]:
    """Lines of `path=value`, values as JSON where they are, else as text."""
    edits: dict[str, Any] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        path, separator, value = line.partition("=")
        if not separator:
            raise InvalidInput("an edit is path=value, one a line")
        try:
            edits[path.strip()] = decode(value.strip().encode())
        except ValueError:
            edits[path.strip()] = value.strip()
    return edits


ROUTES = (
    Route("aq-approvals", r"/approvals", Approvals, "Approvals"),
    Route("aq-approvals-act", r"/approvals/(?P<action>grant|deny)", ApprovalAction),
)
