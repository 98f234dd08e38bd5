"""
The desk without a model: keywords understand, templates answer.

Good enough for the tickets of a demo and honest about the rest: what no rule knows is passed on to a person.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import get_args

from tasks.support_desk.cases import Decision, Intent, Mail, Outcome, Understood

NAME = "rules"
REPLIES = Path(__file__).with_name("replies.toml")

# Not \b: between Japanese and Latin letters there is no word boundary.
ORDER = re.compile(r"(?<![A-Za-z0-9])(?:([A-Z]{2})[- ]?|([a-z]{2})-)(\d{4})(?![A-Za-z0-9])")
NUMBER = r"\d{1,3}(?:[ .,]\d{3})*(?:[.,]\d{2})?|\d+(?:[.,]\d{2})?"
MONEY = re.compile(
    rf"(?:[€£$]|\b(?:EUR|GBP|USD)) ?({NUMBER})(?![\d.,]*\d)"
    rf"|(?<![\d.,])({NUMBER}) ?(?:[€£$]|(?:EUR|GBP|USD|euros?|pounds?|dollars?|dólares|libras)\b)",
    re.IGNORECASE,
)

# The first intent in this order whose words occur wins: who asks for money and is angry asks for money.
WORDS: dict[Intent, str] = {
    "spam": r"bitcoin|crypto|casino|lottery|seo (?:package|ranking)|rank(?:ing)? #?1 on google|you (?:have )?won|"
    r"click here to claim|backlinks|double your",
    "address": r"(?:new|change|different|wrong|another) (?:\w+ ){0,3}address|address change|neue (?:liefer)?adresse|"
    r"adress(?:e ändern|änderung)|nueva dirección|cambi\w+ (?:de |la )?dirección|changement d.adresse|nouvelle adresse|"
    r"nuovo indirizzo|cambi\w+ (?:l.)?indirizzo|nowy adres|zmian\w+ adresu|住所|عنوان\w* الجديد|تغيير العنوان",
    "refund": r"refund|money back|cancel my order|cancel (?:the )?order|erstatt|geld zurück|stornier|reembols|"
    r"devol(?:ución|ver) (?:\w+ ){0,2}dinero|rembours|annul(?:er|ez) (?:\w+ )?commande|rimbors|annull\w+ l.ordine|"
    r"zwrot|zwróć|返金|استرداد|أموالي",
    "where": r"where(?:'s| is| are)|not (?:yet )?arrived|hasn.t (?:\w+ )?(?:arrived|come)|track(?:ing)?|when will|"
    r"wo (?:ist|bleibt)|noch nicht (?:da|angekommen)|dónde está|no ha llegado|où (?:est|en est)|pas (?:encore )?arrivé|"
    r"dov.è|non è (?:ancora )?arrivat|gdzie jest|nie dotarł|届い|いつ届|أين|لم (?:يصل|تصل)",
    "complaint": r"disgrac|outrag|ridiculous|unacceptable|terrible|worst|furious|lawyer|unverschämt|frechheit|"
    r"inaceptable|inadmissible|vergogn|skandal",
    "thanks": r"thank you (?:so|very) much|just wanted to (?:say )?thank|well done|herzlichen dank|muchas gracias por",
    "question": r"\?|？|؟|invoice|warranty|facture|rechnung|size",
}

# Words that only one of the languages uses; English is what remains.
LANGUAGES = {
    "de": r"\b(?:ich|und|bitte|nicht|meine|bestellung|habe|sehr|guten)\b",
    "es": r"\b(?:hola|pedido|por favor|gracias|quiero|buenos|está|mi|dirección)\b",
    "fr": r"\b(?:bonjour|commande|merci|je|vous|svp|votre|est|pas|le)\b",
    "it": r"\b(?:buongiorno|ordine|grazie|vorrei|il|che|sono|salve|mio)\b",
    "pl": r"\b(?:dzień|zamówienie|zamówienia|proszę|dziękuję|jest|się|nie|moja|pozdrawiam)\b",
}
ADDRESS_BELOW = re.compile(
    r"(?i)(?:address|adresse|dirección|indirizzo|adres|住所|العنوان)[^\n:：]{0,60}[:：]\s*((?:[^\n]+\n?){1,5})"
)


def understand(mail: Mail) -> Understood:
    """What the mail asks for, by keywords. The language is guessed from common words."""
    text = f"{mail.subject}\n{mail.body}"
    amounts = _amounts(text)
    return Understood(
        intent=_intent(text) if mail.body else "unclear",
        language=_language(text),
        orders=tuple(dict.fromkeys(f"{(a or b).upper()}-{digits}" for a, b, digits in ORDER.findall(text))),
        amount_cents=amounts[0] if len(amounts) == 1 else None,
        amounts_named=len(amounts),
        address=_address(mail.body),
    )


def word(mail: Mail, understood: Understood, decision: Decision) -> str:
    """The answer's text, from a template in the customer's language."""
    replies = _replies()
    # The whole answer in one language: English where a rare outcome has no translation.
    language = understood.language if understood.language in replies[decision.outcome] else "en"
    facts = decision.model_dump()
    facts["amount"] = money(decision.amount_cents, decision.currency)
    facts["subject"] = mail.subject
    name = mail.name or replies["customer"][language]
    body = replies[decision.outcome][language].format_map(facts)
    return f"{replies['greeting'][language].format(name=name)}\n\n{body}\n\n{replies['farewell'][language]}\n"


def money(cents: int, currency: str) -> str:
    """An amount as people read it."""
    return f"{cents // 100}.{cents % 100:02} {currency}".strip()


def _intent(text: str) -> Intent:
    lowered = text.lower()
    for intent, words in WORDS.items():
        if re.search(words, lowered):
            return intent
    return "unclear"


def _language(text: str) -> str:
    if re.search(r"[\u3040-\u30ff]", text):
        return "ja"
    if re.search(r"[\u0600-\u06ff]", text):
        return "ar"
    counts = {code: len(re.findall(words, text.lower())) for code, words in LANGUAGES.items()}
    best = max(counts, key=lambda code: counts[code])
    return best if counts[best] >= 2 else "en"


def _amounts(text: str) -> list[int]:
    """The different sums of money named, in cents."""
    found = (_cents(before or after) for before, after in MONEY.findall(text))
    return list(dict.fromkeys(found))


def _cents(number: str) -> int:
    """`1.299,00`, `1,299.00`, `12,50` and `12` in cents."""
    whole, fraction = (number[:-3], number[-2:]) if re.search(r"[.,]\d{2}$", number) else (number, "00")
    return int(re.sub(r"\D", "", whole)) * 100 + int(fraction)


def _address(body: str) -> str:
    """The lines after "new address:", up to an empty line."""
    found = ADDRESS_BELOW.search(body)
    return ", ".join(line.strip() for line in found.group(1).strip().split("\n")) if found else ""


@cache
def _replies() -> dict[str, dict[str, str]]:
    """
    The templates.

    Raises:
        ValueError: an outcome has no English text, so that a desk cannot start with a hole in it.
    """
    replies: dict[str, dict[str, str]] = tomllib.loads(REPLIES.read_text("utf-8"))
    wanted = ("greeting", "farewell", "customer", *get_args(Outcome))
    missing = [name for name in wanted if "en" not in replies.get(name, {})]
    if missing:
        raise ValueError(f"{REPLIES.name} has no English text for {', '.join(missing)}")
    return replies
