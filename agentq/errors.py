"""
Errors: split by what the one who catches them must do.

    AgentqError
    ├─ ConfigError             the settings contradict themselves: refuse to start
    │  ├─ SchemaMismatch       the database has not this release's schema: upgrade it
    │  └─ SandboxUnavailable   no sandbox can be closed here, so what needs one is refused
    ├─ InvalidInput            refused at the door: the caller mends the call
    │  ├─ InvalidName          a tenant, agent or step name outside the alphabet
    │  ├─ UnknownAgent         no such agent and version is registered
    │  ├─ UnknownTenant        no such tenant
    │  ├─ InvalidState         the input does not fit the agent's state model
    │  ├─ PayloadTooLarge      an input, state or result above the limit
    │  │  └─ MemoryTooLarge    a memory above its own
    │  ├─ KeyConflict          the same key was used with other arguments
    │  │  └─ ReplayConflict    a replay made another call where one is recorded: fork instead
    │  ├─ SessionBusy          a session with the same concurrency key lives
    │  ├─ NotAllowed           the tenant may not use the agent or the tool
    │  ├─ UnknownApproval      no such approval
    │  ├─ TokenRefused         a submission without a token that lets it in
    │  ├─ NoSuchEffect         no effect of that key
    │  ├─ NoSuchAnomaly        no anomaly of that id
    │  ├─ NoSuchMemory         no memory of that key
    │  └─ NotAnApprover        this person may not decide it, or is not known to be who they say
    ├─ StoreUnavailable        Postgres did not answer: nothing is known, try again
    │  └─ KeyUnavailable       the key provider did not answer: nothing was read or written
    ├─ BrokerUnavailable       the broker did not answer: only time is lost
    ├─ StepFailed              this attempt ended badly
    │  ├─ Transient            try again later
    │  │  └─ MemoryConflict    somebody else has written the memory since: look again
    │  ├─ Semantic             the answer was wrong: repair, then a person
    │  │  └─ RepairsExhausted  it stayed wrong, however often it was fed back
    │  ├─ Permanent            no retry will help
    │  │  ├─ BudgetExceeded     what the call may cost is more than is left
    │  │  ├─ UnknownPrice       nobody knows what the model costs
    │  │  └─ PayloadUnreadable  a payload was altered or moved, or its key is gone
    │  ├─ UnknownEffect        it may have happened: reconcile first
    │  ├─ SandboxFailed        what ran in a sandbox raised, or was ended for what it used
    │  └─ ApprovalRefused      a person did not allow the call; nothing was done
    │     ├─ ApprovalDenied    somebody said no
    │     └─ ApprovalExpired   nobody answered in time
    ├─ Stopped                 raised inside a step that must not go on
    │  ├─ SessionCancelled     somebody cancelled the session
    │  ├─ DeadlineExceeded     the step's or the session's time is up
    │  ├─ Park                 its session is paused for a person; the attempt does not count
    │  ├─ NotNow               it comes back later; the attempt does not count
    │  │  └─ HeldBack          what it needs is out of order, and it was not called
    │  └─ AwaitsApproval       a person is asked first; the step runs again with the answer
    ├─ FenceLost               a newer attempt owns the step: nothing was written
    ├─ SessionFailed           what `wait(...).result` raises for a session that failed
    ├─ WaitTimeout             the session goes on; the caller stopped waiting
    ├─ ApprovalClosed          it was decided before, or nothing waits for it any more
    ├─ UnknownSession          no such session for this tenant
    └─ NotReopened             the session cannot go on from there; the message says what to do

Every error carries its ids as attributes and survives pickling, because all its
arguments reach `Exception.__init__`.
"""

from __future__ import annotations


class AgentqError(Exception):
    """Anything agentq raises on purpose."""


class ConfigError(AgentqError):
    """The settings are incomplete or contradict each other; nothing was started."""


class SchemaMismatch(ConfigError):
    """The database has no schema, another release's, or one that this role may not use."""


class SandboxUnavailable(ConfigError):
    """No sandbox can be closed on this machine, and nothing is run unprotected."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"refused, because no sandbox can be closed here ({self.why}); see `python -m agentq.sandbox attack`"


class InvalidInput(AgentqError, ValueError):
    """Refused at the door, nothing was stored; the caller mends the call."""


class InvalidName(InvalidInput):
    """A name outside `[a-z0-9][a-z0-9_-]{0,62}`."""

    def __init__(self, kind: str, name: object) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return (
            f"{self.kind} name {self.name!r} is not allowed: use 1 to 63 of a-z, 0-9, '_' and '-', "
            "beginning with a letter or digit"
        )


class UnknownAgent(InvalidInput):
    """No agent of that name and version is registered here."""

    def __init__(self, agent: str, version: int | None, known: tuple[str, ...]) -> None:
        super().__init__(agent, version, known)
        self.agent, self.version, self.known = agent, version, known

    def __str__(self) -> str:
        asked = self.agent if self.version is None else f"{self.agent} version {self.version}"
        known = ", ".join(self.known) or "none; is AGENTQ_AGENTS set?"
        return f"no agent {asked!r} is registered (known: {known})"


class UnknownTenant(InvalidInput):
    """The tenant is not in the tenant table."""

    def __init__(self, tenant: str) -> None:
        super().__init__(tenant)
        self.tenant = tenant

    def __str__(self) -> str:
        return f"no tenant {self.tenant!r}: add it with `agentq tenant add {self.tenant}`"


class InvalidState(InvalidInput):
    """Input that does not fit the agent's state model."""

    def __init__(self, agent: str, problems: str) -> None:
        super().__init__(agent, problems)
        self.agent, self.problems = agent, problems

    def __str__(self) -> str:
        return f"the input does not fit the state of agent {self.agent!r}: {self.problems}"


class PayloadTooLarge(InvalidInput):
    """An input, state, argument or result above `payload_max_bytes`."""

    def __init__(self, what: str, size_bytes: int, max_bytes: int) -> None:
        super().__init__(what, size_bytes, max_bytes)
        self.what, self.size_bytes, self.max_bytes = what, size_bytes, max_bytes

    def __str__(self) -> str:
        return (
            f"{self.what} has {self.size_bytes:,} bytes, the limit is {self.max_bytes:,} "
            "(AGENTQ_PAYLOAD_MAX_BYTES): store it elsewhere and pass a reference"
        )


class MemoryTooLarge(PayloadTooLarge):
    """A memory above `memory_max_bytes`; nothing was written."""

    def __str__(self) -> str:
        return (
            f"{self.what} has {self.size_bytes:,} bytes, the limit is {self.max_bytes:,} (AGENTQ_MEMORY_MAX_BYTES): "
            "write it as several memories (agentq.chunks splits a text)"
        )


class KeyConflict(InvalidInput):
    """An idempotency key or effect key was used before with other arguments."""

    def __init__(self, what: str, key: str, by: str = "") -> None:
        super().__init__(what, key, by)
        self.what, self.key, self.by = what, key, by

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        return f"{self.what} {self.key!r} was used before{by} with other arguments; use a new key for a new request"


class UnknownApproval(InvalidInput):
    """No such approval for this tenant."""

    def __init__(self, approval_id: str) -> None:
        super().__init__(approval_id)
        self.approval_id = approval_id

    def __str__(self) -> str:
        return f"no approval {self.approval_id}: `agentq approval ls` shows those there are"


class TokenRefused(InvalidInput):
    """A submission was not let in: it has no token, or none that is good for this tenant and agent."""


class NoSuchAnomaly(InvalidInput):
    """No anomaly whose id begins so."""

    def __init__(self, anomaly_id: str) -> None:
        super().__init__(anomaly_id)
        self.anomaly_id = anomaly_id

    def __str__(self) -> str:
        return f"no anomaly begins with {self.anomaly_id}: see `agentq anomaly ls --state all`"


class NoSuchEffect(InvalidInput):
    """No effect of that key, for this tenant or any."""

    def __init__(self, key: str, tenant: str | None) -> None:
        super().__init__(key, tenant)
        self.key, self.tenant = key, tenant

    def __str__(self) -> str:
        whose = f" of tenant {self.tenant}" if self.tenant else ""
        return f"no effect{whose} has the key {self.key!r}: `agentq effect ls` shows those that are open"


class NoSuchMemory(InvalidInput):
    """The tenant has no memory of that key."""

    def __init__(self, tenant: str, namespace: str, key: str) -> None:
        super().__init__(tenant, namespace, key)
        self.tenant, self.namespace, self.key = tenant, namespace, key

    def __str__(self) -> str:
        return f"tenant {self.tenant!r} has no memory {self.namespace}/{self.key}: `agentq memory ls` shows what it has"


class NotAnApprover(InvalidInput):
    """This person may not decide, or could not be made sure of; nothing was changed."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"{self.name} may not decide this: {self.why}"


class ReplayConflict(KeyConflict):
    """A replay calls with other arguments what an earlier generation has done; it is neither repeated nor recalled."""

    def __init__(self, key: str, name: str, session_id: str, seq: int) -> None:
        super().__init__("effect key", key)
        self.args = (key, name, session_id, seq)
        self.name, self.session_id, self.seq = name, session_id, seq

    def __str__(self) -> str:
        return (
            f"{self.name} was called here before this replay, with other arguments, so it is neither made again nor "
            f"recalled (effect {self.key}); to make the new call, fork: "
            f"agentq session fork {self.session_id} --from-step {self.seq}"
        )


class SessionBusy(InvalidInput):
    """A session with the same concurrency key lives, and the start was not to wait for it."""

    def __init__(self, tenant: str, concurrency_key: str, session_id: str) -> None:
        super().__init__(tenant, concurrency_key, session_id)
        self.tenant, self.concurrency_key, self.session_id = tenant, concurrency_key, session_id

    def __str__(self) -> str:
        return f"session {self.session_id} has the concurrency key {self.concurrency_key!r} now; nothing was started"


class NotAllowed(InvalidInput):
    """The tenant's record does not allow the agent or the tool."""

    def __init__(self, tenant: str, kind: str, name: str) -> None:
        super().__init__(tenant, kind, name)
        self.tenant, self.kind, self.name = tenant, kind, name

    def __str__(self) -> str:
        return f"tenant {self.tenant!r} may not use the {self.kind} {self.name!r} (agentq tenant set {self.tenant})"


class StoreUnavailable(AgentqError):
    """Postgres did not answer; whether the last statement took effect is unknown."""


class KeyUnavailable(StoreUnavailable):
    """A data key could not be unwrapped or made; what needs it waits, as for an absent Postgres."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class BrokerUnavailable(AgentqError):
    """The broker did not answer; what was committed is published later by the relay."""


class StepFailed(AgentqError):
    """This attempt ended badly; the subclass says what to do about it."""

    def __init__(self, message: str = "", *args: object) -> None:
        super().__init__(message, *args)


class Transient(StepFailed):
    """Try again; `retry_after_s` is the earliest moment that makes sense, in seconds from now."""

    def __init__(self, message: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class MemoryConflict(Transient):
    """
    The memory is not in the version that `if_version` names; nothing was written.

    A step may catch it, read again and write again. Uncaught, or found when the step was settled, the step runs
    again and reads what is there then.
    """

    def __init__(self, namespace: str, key: str, expected: int, found: int) -> None:
        super().__init__(f"memory {namespace}/{key}")
        self.args = (namespace, key, expected, found)
        self.namespace, self.key, self.expected, self.found = namespace, key, expected, found

    def __str__(self) -> str:
        found = f"it is version {self.found} now" if self.found else "there is none now"
        expected = f"version {self.expected}" if self.expected else "not there yet"
        return f"memory {self.namespace}/{self.key} was expected to be {expected}, but {found}: read it and try again"


class Semantic(StepFailed):
    """The call worked, its answer was wrong; a repair may help, the same call will not."""


class RepairsExhausted(Semantic):
    """A model's answers stayed unusable after all repairs; another attempt at the same would not help."""

    final = True


class Permanent(StepFailed):
    """No retry will help: the step is dead at once and the caller is told."""


class PayloadUnreadable(Permanent):
    """An encrypted payload does not open: altered, moved from elsewhere, its key destroyed, or no provider."""

    def __init__(self, tenant: str, what: str, why: str) -> None:
        super().__init__(tenant, what, why)
        self.tenant, self.what, self.why = tenant, what, why

    def __str__(self) -> str:
        whose = f" of tenant {self.tenant!r}" if self.tenant else ""
        return f"{self.what}{whose} cannot be decrypted: {self.why}"


class BudgetExceeded(Permanent):
    """
    A call was not made: it may cost more than its budget has left.

    `on_refusal` is what the budget's owner wants: `park` (a person decides) or `end`.
    """

    def __init__(self, message: str, scope: str, subject: str, period: str, on_refusal: str) -> None:
        super().__init__(message, scope, subject, period, on_refusal)
        self.scope, self.subject, self.period, self.on_refusal = scope, subject, period, on_refusal

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownPrice(Permanent):
    """A call was not made, because nobody knows what the model costs."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return (
            f"no price is known for the model {self.model!r}, so the call was not made: set one with "
            f"`agentq budget price {self.model} --input USD --output USD`, or let tokens alone count "
            '(unpriced = "tokens")'
        )


class UnknownEffect(StepFailed):
    """An effect may or may not have happened; it must be reconciled before anything repeats it."""

    def __init__(self, message: str, effect_key: str) -> None:
        super().__init__(message, effect_key)
        self.effect_key = effect_key

    def __str__(self) -> str:
        return str(self.args[0])


class SandboxFailed(StepFailed):
    """A function in a sandbox raised, or was ended there; `kind` and `ended_by` say which."""

    def __init__(self, name: str, kind: str, message: str, ended_by: str = "itself") -> None:
        super().__init__(name, kind, message, ended_by)
        self.name, self.kind, self.message, self.ended_by = name, kind, message, ended_by

    def __str__(self) -> str:
        why = f"{self.kind}: {self.message}" if self.ended_by == "itself" else f"it was ended ({self.ended_by})"
        return f"{self.name} failed in its sandbox: {why}"


class ApprovalRefused(StepFailed):
    """
    A person did not allow what a step wanted to do, and it was not done.

    A step may catch it and go another way. Uncaught, its session fails with it, without a retry: a no
    is no fault.
    """

    def __init__(self, name: str, approval_id: str, by: str | None = None, comment: str | None = None) -> None:
        super().__init__(name, approval_id, by, comment)
        self.name, self.approval_id, self.by, self.comment = name, approval_id, by, comment


class ApprovalDenied(ApprovalRefused):
    """Somebody said no."""

    def __str__(self) -> str:
        return (
            f"{self.by} denied {self.name}{f': {self.comment}' if self.comment else ''} (approval {self.approval_id})"
        )


class ApprovalExpired(ApprovalRefused):
    """Nobody answered in time."""

    def __str__(self) -> str:
        return f"nobody answered in time whether {self.name} may go ahead (approval {self.approval_id})"


class Stopped(AgentqError):
    """Raised inside a step that must not go on; let it pass through."""


class SessionCancelled(Stopped):
    """The session was cancelled; what the step returns is thrown away."""


class DeadlineExceeded(Stopped):
    """The step's timeout or the session's deadline is over."""


class NotNow(Stopped):
    """The step comes back after `delay_s` seconds, and the attempt does not count."""

    def __init__(self, message: str, delay_s: float, *args: object) -> None:
        super().__init__(message, delay_s, *args)
        self.delay_s = delay_s

    def __str__(self) -> str:
        return str(self.args[0])


class Park(Stopped):
    """The session is paused until a person resumes it, and the attempt does not count."""

    def __init__(self, kind: str, reason: str, evidence: dict[str, object] | None = None) -> None:
        super().__init__(kind, reason, evidence)
        self.kind, self.reason, self.evidence = kind, reason, evidence

    def __str__(self) -> str:
        return f"paused by a {self.kind}: {self.reason}"


class AwaitsApproval(Stopped):
    """The step waits for a person, without a worker, and runs again once they have answered."""

    def __init__(self, name: str, approval_id: str) -> None:
        super().__init__(name, approval_id)
        self.name, self.approval_id = name, approval_id

    def __str__(self) -> str:
        return f"{self.name} waits for approval {self.approval_id}"


class HeldBack(NotNow):
    """The breaker of a dependency is not closed: it was not called, and the step comes back."""

    def __init__(self, message: str, delay_s: float, dependency: str) -> None:
        super().__init__(message, delay_s, dependency)
        self.dependency = dependency


class FenceLost(AgentqError):
    """A newer attempt owns the step; nothing was written."""

    def __init__(self, session_id: str, step_id: str, fence: int) -> None:
        super().__init__(session_id, step_id, fence)
        self.session_id, self.step_id, self.fence = session_id, step_id, fence

    def __str__(self) -> str:
        return f"attempt {self.fence} of step {self.step_id} (session {self.session_id}) was superseded"


class SessionFailed(AgentqError):
    """The session ended without a result."""

    def __init__(self, session_id: str, state: str, reason: str) -> None:
        super().__init__(session_id, state, reason)
        self.session_id, self.state, self.reason = session_id, state, reason

    def __str__(self) -> str:
        return f"session {self.session_id} {self.state}: {self.reason}"


class WaitTimeout(AgentqError, TimeoutError):
    """The session has not ended yet; it goes on without the caller."""


class ApprovalClosed(AgentqError):
    """Too late: somebody else decided it, its deadline is over, or nothing waits for it any more."""

    def __init__(self, approval_id: str, state: str, by: str | None, at: str | None) -> None:
        super().__init__(approval_id, state, by, at)
        self.approval_id, self.state, self.by, self.at = approval_id, state, by, at

    def __str__(self) -> str:
        match self.state:
            case "granted" | "denied":
                return f"approval {self.approval_id} was {self.state} by {self.by} at {self.at}; that stands"
            case "expired":
                return f"approval {self.approval_id} expired; what it asked was not done"
            case _:
                return f"approval {self.approval_id} is void: its session ended or went on without it"


class UnknownSession(AgentqError, LookupError):
    """No such session for this tenant."""

    def __init__(self, tenant: str, session_id: str) -> None:
        super().__init__(tenant, session_id)
        self.tenant, self.session_id = tenant, session_id

    def __str__(self) -> str:
        return f"tenant {self.tenant!r} has no session {self.session_id!r}"


class NotReopened(AgentqError):
    """The session was not reopened; nothing was changed. `outcome` says why, in one word."""

    def __init__(self, session_id: str, outcome: str) -> None:
        super().__init__(session_id, outcome)
        self.session_id, self.outcome = session_id, outcome

    def __str__(self) -> str:
        return f"session {self.session_id} was not reopened: {_NOT_REOPENED.get(self.outcome, self.outcome)}"


_NOT_REOPENED = {
    "moved": "somebody else was quicker; look at it again before you repeat this",
    "live": "it has not ended; name the step to go back to, or let it go on",
    "no_step": "it has no such step; `agentq session show` lists its steps",
    "superseded": "that step was replaced by an earlier replay; take the one that is in its place now",
    "parent_ended": "its parent session has ended without it: reopen the parent, which brings its children back",
    "deadline_over": "its deadline is over: give a new one, or none",
    "agent_refused": "its tenant may not use its agent, or that of a child, any more (agentq tenant set)",
    "tenant_closed": "its tenant is draining and takes no new sessions",
}
