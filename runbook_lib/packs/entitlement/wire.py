"""Encode and decode the events that JetStream carries: protobuf here, JSON in the tables of both services."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

GRANTED = "EntitlementGranted"
REVOKED = "EntitlementRevoked"
MATCH_FOUND = "MatchFound"
UNRECOGNIZED = "Unrecognized"


class WireError(Exception):
    """Raised for bytes that are not an event of the expected kind."""


@dataclass(frozen=True)
class EntitlementEvent:
    """One change of a right; field names are those of the JSON payload."""

    event_id: str
    event_type: str
    occurred_at: str
    user_id: str
    stock_keeping_unit: str
    source: str
    source_id: str
    version: int
    trace_id: str

    def payload(self) -> dict[str, Any]:
        """Return the JSON of `outbox_events.payload` and `notifications.payload_json`."""
        return asdict(self)


@dataclass(frozen=True)
class MatchmakingEvent:
    """One match; it has no outbox row."""

    event_id: str
    event_type: str
    occurred_at: str
    match_id: str
    mode: str
    trace_id: str

    @property
    def user_id(self) -> str:
        """Return the user id of the notification; a match itself has no user."""
        return "matchmaking-system"

    def payload(self) -> dict[str, Any]:
        """Return the JSON of `notifications.payload_json`."""
        return {"match_id": self.match_id}


Event = EntitlementEvent | MatchmakingEvent
_E = TypeVar("_E", bound=Event)

# The index is the number on the wire, of types here and of fields in the classes.
_TYPES: dict[type, tuple[str, ...]] = {EntitlementEvent: (GRANTED, REVOKED), MatchmakingEvent: (MATCH_FOUND,)}


def _message_class(kind: type) -> Any:
    # Built in code: two flat messages do not justify a compiler and a generated module.
    package, name = "com.example.proto", kind.__name__
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package=package, syntax="proto3")
    enum = file.enum_type.add(name=f"{name}Type")
    for number, value in enumerate(_TYPES[kind]):
        enum.value.add(name=re.sub(r"(?<=[a-z])(?=[A-Z])", "_", value).upper(), number=number)
    message = file.message_type.add(name=name)
    for number, each in enumerate(fields(kind), start=1):
        added = message.field.add(name=each.name, number=number, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
        if each.name == "event_type":
            added.type = field.TYPE_ENUM
            added.type_name = f".{package}.{enum.name}"
        elif each.type == "int":
            added.type = field.TYPE_INT64
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))


_MESSAGES: dict[type, Any] = {kind: _message_class(kind) for kind in _TYPES}


def encode(event: Event) -> bytes:
    """Encode an event as protobuf; default values (the first type, version 0) take no bytes."""
    kind = type(event)
    if event.event_type not in _TYPES[kind]:
        raise ValueError(f"unknown event type: {event.event_type}")
    number = _TYPES[kind].index(event.event_type)
    body: bytes = _MESSAGES[kind](**{**asdict(event), "event_type": number}).SerializeToString()
    return body


def decode(body: bytes, kind: type[_E] = EntitlementEvent) -> _E:  # type: ignore[assignment]  # the default narrows _E
    """Decode an event from protobuf. An empty body is an event with empty fields. Raises WireError."""
    message = _MESSAGES[kind]()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise WireError(str(error)) from None
    values = {each.name: getattr(message, each.name) for each in fields(kind)}
    number, types = values["event_type"], _TYPES[kind]
    return kind(**{**values, "event_type": types[number] if 0 <= number < len(types) else UNRECOGNIZED})
