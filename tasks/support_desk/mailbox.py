"""The mailbox: reads whatever arrived, and says what was wrong with it."""

from __future__ import annotations

import email
import email.errors
import email.header
import email.utils
import re
from email.message import Message
from html.parser import HTMLParser

from tasks.support_desk.cases import Mail

SUBJECT_MAX = 300
BODY_MAX = 20_000
ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+\Z")
NOT_ANSWERED = re.compile(r"(?i)(no-?reply|do-?not-?reply|mailer-daemon|postmaster)@")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060\ufeff]")


def read_mail(raw: bytes) -> Mail:
    """
    The mail in these bytes, whatever they are.

    Never raises for bad input: what could not be read is missing from the result and
    named in `problems`. The tenant is not read from the mail: anybody can write a
    header, so the mailbox in which a mail arrived decides whose it is.
    """
    problems: list[str] = []
    message = email.message_from_bytes(raw.lstrip(b"\r\n"))
    sender, name = _sender(message, problems)
    return Mail(
        sender=sender,
        name=name,
        subject=_one_line(_header(message, "Subject"))[:SUBJECT_MAX],
        body=_body(message, problems),
        message_id=_one_line(_header(message, "Message-ID"))[:250],
        automatic=_is_automatic(message),
        problems=tuple(problems),
    )


def _sender(message: Message, problems: list[str]) -> tuple[str, str]:
    """Who can be answered: `From`, else the other headers that carry a return address."""
    for header in ("From", "Reply-To", "Return-Path"):
        # Taken apart before it is decoded: an encoded name may hide an address or a line break.
        # Not `parseaddr`, which on some Python 3.11 finds nobody where there are two.
        found = email.utils.getaddresses([_one_line(_unfolded(message, header))])
        name, address = found[0] if found else ("", "")
        if ADDRESS.match(address):
            if header != "From":
                problems.append(f"no usable From header, {header} taken instead")
            if NOT_ANSWERED.match(address):
                problems.append(f"{address} does not read answers")
                return "", ""
            return address.lower(), _one_line(_decoded_words(name))[:100]
    problems.append("no usable return address")
    return "", ""


def _is_automatic(message: Message) -> bool:
    """Whether a machine wrote it. Answering machines makes mail loops (RFC 3834)."""
    submitted = _header(message, "Auto-Submitted").strip().lower()
    precedence = _header(message, "Precedence").strip().lower()
    return submitted not in ("", "no") or precedence in ("bulk", "junk", "list", "auto_reply")


def _header(message: Message, name: str) -> str:
    """A header's text; raw bytes and broken encoded words are shown as well as they can be."""
    return _decoded_words(_unfolded(message, name))


def _unfolded(message: Message, name: str) -> str:
    """A header as it was sent, its raw bytes decoded and its encoded words not."""
    value = message.get(name, "")
    return value if isinstance(value, str) else _joined(email.header.decode_header(value))


def _decoded_words(text: str) -> str:
    try:
        return _joined(email.header.decode_header(text))
    except (email.errors.HeaderParseError, ValueError):
        return text


def _joined(parts: list[tuple[bytes | str, str | None]]) -> str:
    return "".join(part if isinstance(part, str) else _decode(part, charset) for part, charset in parts)


def _body(message: Message, problems: list[str]) -> str:
    """The plain text, or the text of the HTML when there is nothing else."""
    plain: list[str] = []
    html: list[str] = []
    for part in message.walk():
        if part.is_multipart() or part.get_filename():
            continue
        kind = part.get_content_type()
        if kind in ("text/plain", "text/html"):
            (plain if kind == "text/plain" else html).append(_text(part, problems))
    text = "\n".join(plain).strip()
    if not text and html:
        problems.append("HTML only")
        text = "\n".join(_strip_tags(page) for page in html)
    text = _without_quotes(CONTROL.sub("", text).replace("\r\n", "\n")).strip()
    if len(text) > BODY_MAX:
        problems.append(f"body cut at {BODY_MAX:,} characters")
        text = text[:BODY_MAX]
    if not text:
        problems.append("empty body")
    elif _is_noise(text):
        problems.append("body is not text")
        text = ""
    return text


def _text(part: Message, problems: list[str]) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    charset = part.get_content_charset()
    try:
        return payload.decode(charset or "utf-8")
    except (LookupError, UnicodeDecodeError):
        problems.append(f"body is not {charset or 'utf-8'}")
        return _decode(payload, None)


def _decode(raw: bytes, charset: str | None) -> str:
    """Bytes as text: as declared, as UTF-8, and at last as Windows-1252, which almost never fails."""
    for encoding in (charset, "utf-8", "cp1252"):
        try:
            if encoding:
                return raw.decode(encoding)
        except (LookupError, UnicodeDecodeError):
            continue
    return raw.decode("utf-8", "replace")


def _is_noise(text: str) -> bool:
    """Whether most of it is neither letters, digits, spaces nor punctuation that people type."""
    typed = sum(character.isalnum() or character.isspace() or character in ".,;:!?'\"()-@#€£$" for character in text)
    return "\ufffd" in text and typed < 0.8 * len(text)


def _one_line(text: str) -> str:
    """Without line breaks and control characters: what a header could smuggle into our answer."""
    return " ".join(CONTROL.sub("", text).split())


def _without_quotes(text: str) -> str:
    """Without the quoted mail below the answer: the customer asks once, not once per quotation."""
    return "\n".join(line for line in text.split("\n") if not line.lstrip().startswith(">"))


class _Text(HTMLParser):
    """Collects visible text; scripts, styles, comments and hidden elements are left out."""

    VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "source", "wbr"})
    BREAKS = frozenset({"br", "p", "div", "tr", "li", "h1", "h2", "h3"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        style = (dict(attrs).get("style") or "").replace(" ", "").lower()
        unseen = tag in ("script", "style", "head") or "display:none" in style or "font-size:0" in style
        if (unseen or self._hidden) and tag not in self.VOID:
            self._hidden.append(tag)
        if tag in self.BREAKS:
            self.found.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.found.append(data)


def _strip_tags(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    parser.close()
    return "\n".join(" ".join(line.split()) for line in "".join(parser.found).split("\n"))
