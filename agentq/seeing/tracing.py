"""Tracing as the settings say: the redactor, and what of a step is kept."""

from __future__ import annotations

from importlib import import_module

from agentq.agents.tracing import Tracing
from agentq.errors import ConfigError
from agentq.policies.redaction import PACK, Hook, Redactor, own_rules
from agentq.settings import Settings


def redactor_of(settings: Settings) -> Redactor:
    """
    The pack, the operator's own rules, and the fleet's hook.

    Raises:
        ConfigError: a rule is no regular expression, or the hook cannot be imported.
    """
    return Redactor((*PACK, *own_rules(settings.redact)), _hook(settings.redact_hook))


def tracing_of(settings: Settings, redactor: Redactor) -> Tracing:
    """What the steps of a process trace."""
    return Tracing(
        on=settings.trace,
        content=settings.trace_content != "off",
        content_max=settings.trace_content_max,
        redact=redactor.value,
    )


def _hook(name: str) -> Hook | None:
    if not name:
        return None
    module, _, attribute = name.partition(":")
    try:
        hook = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"redact_hook must be module:function, and {name} is not: {type(error).__name__}") from None
    if not callable(hook):
        raise ConfigError(f"redact_hook: {name} cannot be called")
    return hook  # type: ignore[no-any-return]
