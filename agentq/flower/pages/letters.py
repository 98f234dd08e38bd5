"""The Dead letters tab: by cause, and what a redrive would do before it does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from tornado.web import authenticated

from agentq.cli.selecting import STATES
from agentq.errors import InvalidInput
from agentq.flower.pages import redrives
from agentq.flower.pages.tab import Action, Route, Tab
from agentq.seeing.tracing import redactor_of
from agentq.store.dead_letters import GroupBy, LetterGroup

GROUPS: tuple[GroupBy, ...] = ("cause", "agent", "tenant", "step", "class", "dependency")
LETTERS_SHOWN = 100


class Listed(Tab):
    """Dead letters in groups; where filters narrow them, the letters too, and what a redrive of them would do."""

    tab = "aq-letters"

    async def tell(self, *, note: str = "") -> None:
        """The page, with what the form asks for."""
        filters = redrives.filters_of(self)
        by, state = self.chosen("by") or "cause", self.chosen("state") or "open"
        if by not in GROUPS or state not in (*STATES, "all"):
            raise InvalidInput(f"by is one of {', '.join(GROUPS)}; state of {', '.join(STATES)} and all")
        chosen = redrives.selection(filters, state=None if state == "all" else state)
        asked = redrives.asked_of(self, filters, chosen, many=True)
        redact = redactor_of(self.client.settings).value
        letters, narrow = self.client.dead_letters, chosen.narrows

        def question() -> dict[str, Any]:
            rows = letters.ls(chosen, limit=LETTERS_SHOWN) if narrow else []
            groups = letters.groups(by, chosen, limit=100) if "cause" not in filters else []
            return {
                "groups": [replace(group, sample=redact("failure", group.sample)) for group in groups],
                "letters": [(row, redact("failure", row.failure) or {}) for row in rows],
                "dry_run": redrives.dry_run(self.client, asked, redact) if narrow and state == "open" else None,
                "jobs": redrives.job_lines(self.client),
                "total": letters.count(chosen) if narrow else None,
            }

        self.show(
            "aq_letters.html",
            filters=filters,
            by=by,
            bys=GROUPS,
            state=state,
            states=(*STATES, "all"),
            note=note,
            into=lambda group: _into(by, group, filters, state),
            post_to=self.reverse_url("aq-letters-act", "redrive"),
            many=True,
            steps=(),
            opened=bool(note or self.request.method == "POST"),
            **await self.ask(question),
        )


class DeadLetters(Listed):
    """The tab itself."""

    @authenticated
    async def get(self) -> None:
        await self.tell()


class LettersAction(Listed, Action):
    """Redrive or discard the letters that the filters name; a redrive only on terms whose dry run was shown."""

    async def previews(self, **place: str) -> bool:
        if place["action"] != "redrive":
            return False
        asked = self._asked()
        if self.chosen("dry_run"):
            await self.tell()
            return True
        if self.chosen("seen") != asked.seen:
            await self.tell(note="This is what it would do on these terms. Nothing is changed yet.")
            return True
        return False

    def _asked(self) -> redrives.Asked:
        filters = redrives.filters_of(self)
        return redrives.asked_of(self, filters, redrives.selection(filters), many=True)

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        here = str(self.reverse_url("aq-letters"))
        asked = self._asked()
        if place["action"] == "discard":
            count = self.client.dead_letters.discard(asked.selection, reason=reason)
            return f"{count:,} letters are discarded", here
        return redrives.begin(self.client, asked, reason=reason, user=user), f"{here}#redrives"


def _into(by: GroupBy, group: LetterGroup, filters: dict[str, str], state: str) -> str:
    """The address of a group's letters."""
    value = group.key[:12] if by == "cause" else group.key
    wanted = filters | ({by: value} if value else {})
    if by == "step":  # `agent.step`
        agent, _, step = group.key.partition(".")
        wanted = filters | {"agent": agent, "step": step}
    return urlencode(wanted | ({"state": state} if state != "open" else {}))


ROUTES = (
    Route("aq-letters", r"/dead-letters", DeadLetters, "Dead letters"),
    Route("aq-letters-act", r"/dead-letters/(?P<action>redrive|discard)", LettersAction),
    *redrives.ROUTES,
)
