"""One dead letter: everything that is known of a death, what was done about it, and what may be."""

from __future__ import annotations

import uuid
from typing import Any

from tornado.web import authenticated

from agentq.cli.dlq import EFFECT_FACTS, advice_on
from agentq.errors import InvalidInput, PayloadUnreadable
from agentq.flower.pages import redrives
from agentq.flower.pages.tab import Action, Route, Tab
from agentq.payload import decode
from agentq.seeing import page as parts
from agentq.seeing.tracing import redactor_of
from agentq.store.dead_letters import Letter, Selection


class Told(Tab):
    """One letter, redacted as everything else: cause, attempts, state, cost, effects, its redrives, what to do."""

    tab = "aq-letters"

    def chosen_letter(self, tenant: str, letter_id: str) -> Letter:
        """
        The letter of the address.

        Raises:
            InvalidInput: the tenant has none of that id.
        """
        return self.client.dead_letters.get(tenant, letter_id)

    def asked(self, tenant: str, letter_id: str) -> redrives.Asked:
        """What the form asks for, of this letter alone."""
        try:
            one = Selection(letters=(uuid.UUID(letter_id),), tenant=tenant)
        except ValueError:
            raise InvalidInput(f"{letter_id!r} is no letter's id") from None
        return redrives.asked_of(self, {}, one, many=False)

    async def tell(self, tenant: str, letter_id: str, *, note: str = "") -> None:
        """The page, with what the form asks for."""
        asked = self.asked(tenant, letter_id)
        redact = redactor_of(self.client.settings).value

        def question() -> dict[str, Any]:
            letter, letters = self.chosen_letter(tenant, letter_id), self.client.dead_letters
            effects = [dict(zip(EFFECT_FACTS, row, strict=True)) for row in letters.letters.open_effects(letter)]
            places = self.client.recovery.store.places(tenant, letter.session_id)
            job = letters.redrives.get(letter.job_id) if letter.job_id else None
            others = letters.ls(Selection(tenant=tenant, session=letter.session_id, state=None), limit=20)
            return {
                "letter": letter,
                "cause_text": redact("failure", letter.cause_text),
                "failure": redact("failure", letter.failure) or {},
                "attempts": [redact("failure", one) for one in letter.attempts],
                "effects": [redact("input", effect) for effect in effects],
                "advice": advice_on(letter, effects),
                "given": self._given(letter, redact),
                "job": job,
                "others": [one for one in others if one.letter_id != letter.letter_id],
                "steps": list(dict.fromkeys(place.name for place in places)),
                "dry_run": redrives.dry_run(self.client, asked, redact) if letter.state == "open" else None,
            }

        self.show(
            "aq_letter.html",
            note=note,
            many=False,
            filters={},
            post_to=self.reverse_url("aq-letter-act", tenant, letter_id, "redrive"),
            opened=bool(note or self.request.method == "POST"),
            pre=parts.pre,
            **await self.ask(question),
        )

    def _given(self, letter: Letter, redact: Any) -> Any:
        """The state from which the step began; a letter whose state cannot be opened is still to be read."""
        try:
            return redact("state", decode(self.client.dead_letters.letters.state_before(letter)[0]))
        except (PayloadUnreadable, InvalidInput) as error:
            return f"[not to be had: {error}]"


class OneLetter(Told):
    """The page itself."""

    @authenticated
    async def get(self, tenant: str, letter_id: str) -> None:
        await self.tell(tenant, letter_id)


class OneLetterAction(Told, Action):
    """Redrive or discard this letter; a redrive only on terms whose dry run was shown."""

    async def previews(self, **place: str) -> bool:
        if place["action"] != "redrive":
            return False
        tenant, letter = place["tenant"], place["letter_id"]
        if self.chosen("dry_run"):
            await self.tell(tenant, letter)
            return True
        if self.chosen("seen") != self.asked(tenant, letter).seen:
            await self.tell(tenant, letter, note="This is what it would do on these terms. Nothing is changed yet.")
            return True
        return False

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        tenant, letter_id = place["tenant"], place["letter_id"]
        here = str(self.reverse_url("aq-letter", tenant, letter_id))
        asked = self.asked(tenant, letter_id)
        self.chosen_letter(tenant, letter_id)
        if place["action"] == "discard":
            count = self.client.dead_letters.discard(asked.selection, reason=reason)
            return ("the letter is discarded" if count else "the letter was not open any more"), here
        return redrives.bring_back(self.client, asked, reason=reason), here


_LETTER = r"/letter/(?P<tenant>[a-z0-9][a-z0-9_-]{0,62})/(?P<letter_id>[0-9a-f-]{36})"

ROUTES = (
    Route("aq-letter", _LETTER, OneLetter),
    Route("aq-letter-act", rf"{_LETTER}/(?P<action>redrive|discard)", OneLetterAction),
)
