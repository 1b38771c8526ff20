"""No secret and no person leaves."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.masking import Masker, secrets_of

URL = "postgresql://runbook:p%40ss-word9@db:5432/app"
MASKER = Masker.of([URL, "nats://broker-token@nats:4222"], "INC-1")


@pytest.mark.parametrize(
    "text",
    [
        "connection to p%40ss-word9 failed",
        "the password is p@ss-word9 indeed",
        f"could not connect: {URL}",
        "nats://broker-token@nats:4222 refused",
        "redis://:another-one@cache:6379/0",
        "password=hunter22 user=x",
        "token: abc.def.ghi",
    ],
)
def test_secrets_are_scrubbed(text: str) -> None:
    scrubbed = MASKER.scrub(text)
    for secret in ("p%40ss-word9", "p@ss-word9", "broker-token", "another-one", "hunter22", "abc.def.ghi"):
        assert secret not in scrubbed


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ('{"user_id": "alice", "n": 1}', '{"user_id": "TOKEN", "n": 1}'),
        ('{"userId":"alice"}', '{"userId":"TOKEN"}'),
        ('{"user_id": null}', '{"user_id": null}'),
        (r'{"message": "refused {\"user_id\": \"alice\"}"}', r'{"message": "refused {\"user_id\": \"TOKEN\"}"}'),
        ("{'user_id': 'alice'}", "{'user_id': 'TOKEN'}"),
        ("userId=<user>", "userId=<user>"),
        ("POSTGRES_PASSWORD=hunter22", "POSTGRES_PASSWORD=***"),
    ],
)
def test_lines_of_a_log_stay_what_they_were(line: str, masked: str) -> None:
    assert MASKER.scrub(line) == masked.replace("TOKEN", str(MASKER.person("alice")))
    number = MASKER.scrub('{"user_id": 7, "n": 1}')
    assert json.loads(number) == {"user_id": MASKER.person("7"), "n": 1}


def test_secrets_of_urls_in_both_spellings() -> None:
    assert {"p%40ss-word9", "p@ss-word9"} <= set(secrets_of([URL]))
    assert secrets_of(["postgresql://u@h/d", "http://h:8222"]) == ()


@given(st.text(min_size=1))
def test_tokens_are_stable_within_an_incident_and_differ_between_two(user: str) -> None:
    other = Masker.of([URL], "INC-2")
    assert MASKER.person(user) == MASKER.person(user) != other.person(user)
    assert str(MASKER.person(user)).startswith("user-")


def test_frames_are_masked_and_the_given_one_is_left_alone() -> None:
    frame = pd.DataFrame(
        {
            "user_id": ["alice", None],
            "aggregate_key": ["alice:sku-1", "bob:sku-2"],
            "last_error": ["notification delivery failure injection matched userId=alice", None],
            "locked_by": ["pod-1", "pod-2"],
        }
    )
    masked = MASKER.frame(frame)
    assert "alice" not in masked.to_json() and "bob" not in masked.to_json()
    assert masked["aggregate_key"][0] == f"{MASKER.person('alice')}:sku-1"
    assert list(masked["locked_by"]) == ["pod-1", "pod-2"]
    assert frame["user_id"][0] == "alice"
    assert MASKER.frame(masked.iloc[:0]).empty
