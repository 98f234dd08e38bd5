"""Agents: a name, a version, a typed state, and steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, get_type_hints, overload

from pydantic import BaseModel, TypeAdapter, ValidationError

from agentq.agents.registry import Registry, default_registry
from agentq.agents.returns import Duration, seconds
from agentq.errors import ConfigError, InvalidState, Permanent
from agentq.payload import decode, encode
from agentq.step import valid_name

StateT = TypeVar("StateT", bound=BaseModel)
Function = Callable[..., Any]
# Told what was wrong and the state: what the next attempt is told, or None when no repair will help.
Feedback = Callable[[BaseException, Any], str | None]

# A state of an older version, as plain data, and what the next version has instead.
Migration = Callable[[dict[str, Any]], dict[str, Any]]

_RETRIES_MAX = 10_000
_REPAIRS_MAX = 100


class Step:
    """
    One step of an agent: the function, and how an attempt at it is bounded.

    Calling it calls the function, so a step can be tested without a fleet.
    """

    def __init__(
        self,
        agent: str,
        function: Function,
        *,
        start: bool,
        retries: int | None,
        timeout_s: float | None,
        needs: str | None = None,
        repairs: int | None = None,
        on_semantic: Feedback | None = None,
        fallback: Step | str | None = None,
    ) -> None:
        self.agent = agent
        self.function = function
        self.name = valid_name("step", function.__name__.lower())
        self.start = start
        if retries is not None and (isinstance(retries, bool) or not 0 <= retries <= _RETRIES_MAX):
            raise ConfigError(f"retries of step {self.name!r} is a whole number from 0 to {_RETRIES_MAX:,}")
        self.retries = retries
        self.timeout_s = timeout_s
        self.needs = valid_name("dependency", needs) if needs is not None else None
        if repairs is not None and (isinstance(repairs, bool) or not 0 <= repairs <= _REPAIRS_MAX):
            raise ConfigError(f"repairs of step {self.name!r} is a whole number from 0 to {_REPAIRS_MAX}")
        if repairs is None and (on_semantic is not None or fallback is not None):
            raise ConfigError(f"step {self.name!r} has on_semantic or fallback, and no repairs= that would lead to it")
        self.repairs = repairs
        self.on_semantic = on_semantic
        self.fallback = fallback
        self.is_async = inspect.iscoroutinefunction(function)
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters:
            raise ConfigError(f"step {self.name!r} of agent {agent!r} must take the state as its first argument")
        self.wants_context = len(parameters) > 1 and parameters[1].name in ("ctx", "context", "_ctx", "_context", "_")
        self._extra = parameters[2 if self.wants_context else 1 :]
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<step {self.agent}.{self.name}>"

    def takes(self, argument: str) -> bool:
        """Whether the step has a further argument of that name."""
        return any(parameter.name == argument for parameter in self._extra)

    def bind(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """
        Arguments read back from their stored form, as the step's annotations say.

        Raises:
            Permanent: one is unknown, missing or of another type.
        """
        known = {parameter.name for parameter in self._extra}
        if unknown := sorted(set(args) - known):
            raise Permanent(f"step {self.name!r} takes no argument {', '.join(unknown)}")
        missing = [p.name for p in self._extra if p.default is p.empty and p.name not in args]
        if missing:
            raise Permanent(f"step {self.name!r} needs the argument {', '.join(missing)}")
        try:
            return {name: self._adapters[name].validate_python(value) for name, value in args.items()}
        except ValidationError as error:
            raise Permanent(f"arguments of step {self.name!r}: {problems(error)}") from None

    @functools.cached_property
    def _adapters(self) -> dict[str, TypeAdapter[Any]]:
        hints = get_type_hints(self.function)
        return {parameter.name: TypeAdapter(hints.get(parameter.name, Any)) for parameter in self._extra}


class Agent(Generic[StateT]):
    """
    An agent made of steps.

    Sessions are pinned to the name and version with which they started. Constructing an agent
    registers it; `AGENTQ_AGENTS` names the modules that do so.
    """

    def __init__(self, name: str, *, state: type[StateT], version: int = 1, registry: Registry | None = None) -> None:
        self.name = valid_name("agent", name)
        if not (inspect.isclass(state) and issubclass(state, BaseModel)):
            raise ConfigError(f"the state of agent {name!r} must be a pydantic BaseModel, not {state!r}")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ConfigError(f"the version of agent {name!r} must be a whole number from 1")
        self.version = version
        self.state = state
        self.steps: dict[str, Step] = {}
        # Reads the session's messages, for agents that must understand their own; raises Permanent when it cannot.
        self.read_history: Callable[[list[tuple[int, bytes, str]]], object] | None = None
        self._migrations: dict[int, tuple[Migration, Mapping[str, str]]] = {}
        (registry or default_registry).add(self)

    def __repr__(self) -> str:
        return f"<agent {self.pin}>"

    @property
    def pin(self) -> str:
        """Name and version, as workers announce what they serve."""
        return f"{self.name}@{self.version}"

    @overload
    def step(self, function: Function, /) -> Step: ...
    @overload
    def step(
        self,
        /,
        *,
        start: bool = False,
        retries: int | None = None,
        timeout: Duration | None = None,
        needs: str | None = None,
        repairs: int | None = None,
        on_semantic: Feedback | None = None,
        fallback: Step | str | None = None,
    ) -> Callable[[Function], Step]: ...
    def step(
        self,
        function: Function | None = None,
        /,
        *,
        start: bool = False,
        retries: int | None = None,
        timeout: Duration | None = None,
        needs: str | None = None,
        repairs: int | None = None,
        on_semantic: Feedback | None = None,
        fallback: Step | str | None = None,
    ) -> Step | Callable[[Function], Step]:
        """
        Make a function a step of this agent: `(state)`, `(state, ctx)`, and further named arguments.

        `retries` counts the attempts after the first, `timeout` bounds one attempt; both default to
        the settings. The step with `start=True`, or the only one, begins each session.

        `needs` names what the step calls outside ("stripe", "openai"): while that is out of order, by the
        breaker that the fleet shares, the step waits and loses no attempt.

        `repairs` bounds how often a wrong answer (`Semantic`, a validation error) is fed back: the next
        attempt finds it in `ctx.repair`, in the words of `on_semantic(error, state)` if there is one. When
        they are used up, the step `fallback` goes on with the state as it was (and `error`, if it takes
        that argument), or the step is dead.

        Raises:
            ConfigError: the name is taken, or a second step wants to be the start.
        """

        def add(function: Function) -> Step:
            limit_s = seconds(timeout) if timeout is not None else None
            step = Step(
                self.name,
                function,
                start=start,
                retries=retries,
                timeout_s=limit_s,
                needs=needs,
                repairs=repairs,
                on_semantic=on_semantic,
                fallback=fallback,
            )
            if step.name in self.steps:
                raise ConfigError(f"agent {self.name!r} has two steps named {step.name!r}")
            if start and any(other.start for other in self.steps.values()):
                raise ConfigError(f"agent {self.name!r} has two steps with start=True")
            self.steps[step.name] = step
            return step

        return add(function) if function is not None else add

    @property
    def first(self) -> Step:
        """
        The step that begins a session.

        Raises:
            ConfigError: none is marked, and there is not exactly one step.
        """
        marked = [step for step in self.steps.values() if step.start]
        if marked:
            return marked[0]
        if len(self.steps) == 1:
            return next(iter(self.steps.values()))
        raise ConfigError(f"agent {self.name!r} needs one step with start=True")

    def find(self, step: Step | str) -> Step:
        """
        One of this agent's steps.

        Raises:
            Permanent: it has no such step.
        """
        name = step.name if isinstance(step, Step) else step
        found = self.steps.get(name)
        if found is None or (isinstance(step, Step) and step.agent != self.name):
            raise Permanent(f"agent {self.name!r} has no step {name!r} (it has: {', '.join(self.steps) or 'none'})")
        return found

    def admit(self, input: BaseModel | Mapping[str, Any]) -> bytes:
        """
        A session's input as its first state, checked and encoded.

        Raises:
            InvalidState: it does not fit the state model; each problem is named, no value is shown.
        """
        try:
            state = (
                input
                if isinstance(input, self.state)
                else self.state.model_validate(input.model_dump() if isinstance(input, BaseModel) else input)
            )
        except ValidationError as error:
            raise InvalidState(self.name, problems(error)) from None
        try:
            return encode(state)
        except TypeError as error:  # half a surrogate pair, or a field of a type without a JSON form
            raise InvalidState(self.name, str(error)) from None

    def migrate(self, *, from_version: int, steps: Mapping[str, str] | None = None) -> Callable[[Migration], Migration]:
        """
        Say how a state of an older version becomes one of the version after it, as plain data.

            @refunds.migrate(from_version=1)
            def _cents(old: dict) -> dict:
                return {**old, "amount_cents": round(old.pop("amount") * 100)}

        With every version in between declared, this agent takes over the live sessions of the older ones.
        `steps` maps names of steps that are called otherwise now, for steps that wait to run.

        Raises:
            ConfigError: the version is not older than this agent's, or is declared twice.
        """
        if isinstance(from_version, bool) or not isinstance(from_version, int) or not 0 < from_version < self.version:
            raise ConfigError(f"agent {self.pin} migrates from versions 1 to {self.version - 1}, not {from_version!r}")
        if from_version in self._migrations:
            raise ConfigError(f"agent {self.pin} migrates twice from version {from_version}")

        def add(migration: Migration) -> Migration:
            self._migrations[from_version] = (migration, dict(steps or {}))
            return migration

        return add

    @property
    def takes_over(self) -> tuple[int, ...]:
        """Older versions whose live sessions this agent can carry on: those from which a whole chain leads here."""
        able = []
        version = self.version - 1
        while version in self._migrations:
            able.append(version)
            version -= 1
        return tuple(able)

    def renamed(self, step: str, version: int | None) -> str:
        """What a step of an older version is called here."""
        for older in range(version or self.version, self.version):
            step = self._migrations[older][1].get(step, step) if older in self._migrations else step
        return step

    def read(self, state: bytes, version: int | None = None) -> StateT:
        """
        A stored state, brought forward from the version that wrote it.

        Raises:
            Permanent: this code cannot read it; a retry would not help.
        """
        if version is not None and version != self.version:
            state = self._forward(state, version)
        try:
            return self.state.model_validate_json(state)
        except ValidationError as error:
            raise Permanent(f"the stored state does not fit {self.state.__name__}: {problems(error)}") from None

    def _forward(self, state: bytes, version: int) -> bytes:
        if version > self.version or version not in (self.version, *self.takes_over):
            raise Permanent(f"the stored state is of version {version}, which agent {self.pin} cannot read")
        old = decode(state)
        for older in range(version, self.version):
            try:
                old = self._migrations[older][0](old)
            except Exception as error:
                raise Permanent(
                    f"the migration of agent {self.name!r} from version {older} raised {type(error).__name__}"
                ) from error
        return encode(old)


def problems(error: ValidationError) -> str:
    """A validation error in one line, without the values."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'input'}: {e['msg']}" for e in error.errors()[:10])
