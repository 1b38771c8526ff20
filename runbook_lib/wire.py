"""EntitlementEvent as it travels through JetStream: protobuf here, JSON in the tables on both sides."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

GRANTED = "EntitlementGranted"
REVOKED = "EntitlementRevoked"
UNRECOGNIZED = "Unrecognized"
_TYPES = (GRANTED, REVOKED)  # the index is the number on the wire


class WireError(Exception):
    """The bytes are not an EntitlementEvent."""


@dataclass(frozen=True)
class EntitlementEvent:
    """One event; field names are those of the JSON payload."""

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
        """The JSON of `outbox_events.payload` and `notifications.payload_json`."""
        return asdict(self)


def _message_class() -> Any:
    # Built in code: one message of nine fields does not justify a compiler and a generated module.
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="com/example/proto/entitlement_event.proto", package="com.example.proto", syntax="proto3"
    )
    kind = file.enum_type.add(name="EntitlementEventType")
    kind.value.add(name="ENTITLEMENT_GRANTED", number=0)
    kind.value.add(name="ENTITLEMENT_REVOKED", number=1)
    message = file.message_type.add(name="EntitlementEvent")
    for number, name in enumerate(EntitlementEvent.__dataclass_fields__, start=1):
        added = message.field.add(name=name, number=number, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
        if name == "event_type":
            added.type = field.TYPE_ENUM
            added.type_name = ".com.example.proto.EntitlementEventType"
        elif name == "version":
            added.type = field.TYPE_INT64
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("com.example.proto.EntitlementEvent"))


_Message = _message_class()


def encode(event: EntitlementEvent) -> bytes:
    """To protobuf; default values (GRANTED, version 0) take no bytes."""
    if event.event_type not in _TYPES:
        raise ValueError(f"unknown event type: {event.event_type}")
    body: bytes = _Message(**{**event.payload(), "event_type": _TYPES.index(event.event_type)}).SerializeToString()
    return body


def decode(body: bytes) -> EntitlementEvent:
    """From protobuf; WireError when it is none. An empty body is a valid event with empty fields."""
    message = _Message()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise WireError(str(error)) from None
    fields = {name: getattr(message, name) for name in EntitlementEvent.__dataclass_fields__}
    number = fields["event_type"]
    fields["event_type"] = _TYPES[number] if number < len(_TYPES) and number >= 0 else UNRECOGNIZED
    return EntitlementEvent(**fields)
