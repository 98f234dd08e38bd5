"""The thread: a graph's checkpoint as the state of a session, each value in a form that stores only what grew."""

from __future__ import annotations

import base64
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, cast, get_args

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel, ConfigDict, Field

from agentq.errors import Permanent

_PACKED = "$msgpack"
_VALUE = "value."


class Thread(BaseModel):
    """
    A session's state: the input, the graph's checkpoint, and the answers of people that it waits for.

    Values of the graph's channels are fields of their own (`value.NAME`), lists item by item, so that a
    list of messages that only grew is stored by what it grew.
    """

    model_config = ConfigDict(extra="allow")

    input: Any = None
    began: bool = False
    # Where effects of the superstep have their keys: it stays the same while people are asked.
    anchor: str = ""
    anchored_in: str = ""
    supersteps: int = 0
    questions: dict[str, Any] = Field(default_factory=dict)
    answers: dict[str, Any] = Field(default_factory=dict)
    checkpoints: dict[str, Any] = Field(default_factory=dict)


def serializer_of(types: Iterable[type]) -> JsonPlusSerializer:
    """LangGraph's own serializer, which makes of stored bytes nothing but its safe types and these."""
    allowed = {(kind.__module__, kind.__name__) for kind in types}
    return JsonPlusSerializer(allowed_msgpack_modules=sorted(allowed) or None)


class Codec:
    """Values of channels as JSON: plain ones as they are, others packed, and none read back as another type."""

    def __init__(self, serializer: JsonPlusSerializer) -> None:
        self._serde = serializer
        self._known: set[str] = set()

    def dump(self, value: Any) -> Any:
        """
        The value in a form that JSON keeps.

        Raises:
            Permanent: it would be read back as something else.
        """
        if type(value) is list:
            return [self._item(item) for item in value]
        return self._item(value)

    def load(self, stored: Any) -> Any:
        """What `dump` was given."""
        if type(stored) is list:
            return [self.load(item) for item in stored]
        if type(stored) is dict:
            if _PACKED not in stored:
                return {name: self.load(item) for name, item in stored.items()}
            kind, text = stored[_PACKED]
            self._known.add(text)
            return self._serde.loads_typed((kind, base64.b64decode(text)))
        return stored

    def _item(self, value: Any) -> Any:
        if _is_plain(value):
            return value
        kind, data = self._serde.dumps_typed(value)
        text = base64.b64encode(data).decode()
        # What is blocked comes back as its parts, not as an error: so it is refused where it is written.
        if text not in self._known and self._serde.dumps_typed(self._serde.loads_typed((kind, data))) != (kind, data):
            raise Permanent(
                f"a {type(value).__name__} in the graph's state cannot be read back: name the types that it "
                "holds, as durable(graph, types=[...])"
            )
        self._known.add(text)
        return {_PACKED: [kind, text]}


def _is_plain(value: Any) -> bool:
    if value is None or type(value) in (str, int, bool):
        return True
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return _PACKED not in value and all(type(name) is str and _is_plain(item) for name, item in value.items())
    return False


class Saver(BaseCheckpointSaver[int]):
    """The checkpointer of one step: it begins with the session's state and holds what the graph makes of it."""

    def __init__(self, thread: Thread, codec: Codec) -> None:
        super().__init__()
        self._codec = codec
        self._latest: dict[str, dict[str, Any]] = {}
        self._values: dict[str, dict[str, Any]] = {}
        for namespace, kept in thread.checkpoints.items():
            self._latest[namespace] = kept | {"writes": [[*w[:3], codec.load(w[3])] for w in kept["writes"]]}
            values = kept.get("values") or _values_of(thread)
            self._values[namespace] = {name: codec.load(value) for name, value in values.items()}

    def store(self, thread: Thread) -> None:
        """Write what was put into the session's state."""
        codec, done = self._codec, not self._waits()
        extra = thread.__pydantic_extra__
        assert extra is not None
        thread.checkpoints = {}
        for namespace, latest in self._latest.items():
            # A subgraph without a memory of its own has ended with its node.
            if done and ":" in namespace:
                continue
            kept = latest | {"writes": [[*w[:3], codec.dump(w[3])] for w in latest["writes"]]}
            values = {name: codec.dump(value) for name, value in self._values[namespace].items()}
            if namespace == "":
                for name in [name for name in extra if name.startswith(_VALUE)]:
                    del extra[name]
                extra.update({f"{_VALUE}{name}": value for name, value in values.items()})
            else:
                kept["values"] = values
            thread.checkpoints[namespace] = kept

    def _waits(self) -> bool:
        return any(latest["writes"] for latest in self._latest.values())

    # ── what LangGraph asks for ──────────────────────────────────────────────

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The latest checkpoint; older ones are not kept."""
        thread, namespace = _place(config)
        latest = self._latest.get(namespace)
        wanted = config["configurable"].get("checkpoint_id")
        if latest is None or wanted not in (None, latest["checkpoint"]["id"]):
            return None
        versions = latest["checkpoint"]["channel_versions"]
        values = {name: value for name, value in self._values[namespace].items() if name in versions}
        parent = latest["parent"]
        return CheckpointTuple(
            config=_config(thread, namespace, latest["checkpoint"]["id"]),
            checkpoint=cast(Checkpoint, {**latest["checkpoint"], "channel_values": values}),
            metadata=latest["metadata"],
            parent_config=_config(thread, namespace, parent) if parent else None,
            pending_writes=[(task, channel, value) for task, _, channel, value in latest["writes"]],
        )

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: ARG002
        before: RunnableConfig | None = None,  # noqa: ARG002
        limit: int | None = None,  # noqa: ARG002
    ) -> Iterator[CheckpointTuple]:
        """The latest alone."""
        found = self.get_tuple(config) if config is not None else None
        if found is not None:
            yield found

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Hold the checkpoint in place of the one before."""
        thread, namespace = _place(config)
        bare: dict[str, Any] = dict(checkpoint)
        given = bare.pop("channel_values")
        values = self._values.setdefault(namespace, {})
        for name in new_versions:
            if name in given:
                values[name] = given[name]
            else:
                values.pop(name, None)
        parent = config["configurable"].get("checkpoint_id")
        self._latest[namespace] = {
            "checkpoint": bare, "metadata": {k: v for k, v in metadata.items() if _is_plain(v)}, "parent": parent,
            "writes": [],
        }  # fmt: skip
        return _config(thread, namespace, checkpoint["id"])

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",  # noqa: ARG002
    ) -> None:
        """Hold what a task wrote, or what it asks."""
        latest = self._latest.get(_place(config)[1])
        if latest is None or latest["checkpoint"]["id"] != config["configurable"].get("checkpoint_id"):
            return
        held: list[Any] = latest["writes"]
        for position, (channel, value) in enumerate(writes):
            number = WRITES_IDX_MAP.get(channel, position)
            same = [write for write in held if write[:2] == [task_id, number]]
            if same and number >= 0:
                continue
            for write in same:
                held.remove(write)
            held.append([task_id, number, channel, value])

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `get_tuple`; nothing of this waits."""
        return self.get_tuple(config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As `list`."""
        for found in self.list(config, filter=filter, before=before, limit=limit):
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As `put`."""
        return self.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """As `put_writes`."""
        self.put_writes(config, writes, task_id, task_path)


def types_in(annotation: Any) -> set[type]:
    """The classes that an annotation names, apart from Python's own."""
    found: set[type] = set()
    if isinstance(annotation, type) and annotation.__module__ not in ("builtins", "typing"):
        found.add(annotation)
        for inner in getattr(annotation, "__annotations__", {}).values():
            found |= types_in(inner) if not isinstance(inner, str) else set()
    for inner in get_args(annotation):
        found |= types_in(inner)
    return found


def _values_of(thread: Thread) -> dict[str, Any]:
    extra = thread.__pydantic_extra__ or {}
    return {name.removeprefix(_VALUE): value for name, value in extra.items() if name.startswith(_VALUE)}


def _place(config: RunnableConfig) -> tuple[str, str]:
    return config["configurable"]["thread_id"], config["configurable"].get("checkpoint_ns", "")


def _config(thread: str, namespace: str, checkpoint: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": checkpoint}}
