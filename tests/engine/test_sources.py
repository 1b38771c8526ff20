"""A source of a pack's own: found by name, opened for a target that declares it, and recorded like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runbook_lib.book import pack
from runbook_lib.checks.context import Sources
from runbook_lib.model.finding import Reason
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import settings
from runbook_lib.sources.settings import Budget
from runbook_lib.sources.source import ClockOffset, Opening, ReadCost, SourceError

#: A pack with a source that answers from a file; nothing of it is known to the engine.
PACK = """
from pathlib import Path
from runbook_lib.book.pack import Pack
PACK = Pack("shop", Path(__file__).parent, facts="kafka:ShopFacts",
            sources={"kafka": "kafka:Kafka"}, required=("kafka",))
"""
SOURCE = """
from runbook_lib.sources import settings
from runbook_lib.model.finding import Reason
from runbook_lib.sources.source import ClockOffset, SourceError

class ShopFacts(settings.TargetFacts):
    addresses = {"kafka_url": ("kafka://HOST:9092", ("kafka",))}

class Kafka:
    def __init__(self, url, read_cost):
        self._url, self._read_cost = url, read_cost

    @classmethod
    def declared(cls, opening):
        url = opening.target.address("kafka_url")
        return cls(url, opening.read_cost) if url else None

    def clock(self, facts):
        return {"kafka": ClockOffset(2.0, 0.1)}

    def lag(self, group):
        with self._read_cost.query("kafka", "lag", f"offsets of {group} at {self._url}") as asked:
            if "down" in self._url:
                raise SourceError("kafka", Reason.UNREACHABLE, f"{self._url} does not answer")
            asked.rows = 1
            return 7
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[pack.Runbook]:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACK)
    (folder / "kafka.py").write_text(SOURCE)
    with pack.use_pack(folder) as runbook:
        yield runbook


def opened(url: str = "", **other: str) -> tuple[Sources, Opening]:
    values = {"database_url": "postgresql://u@127.0.0.1:1/d"} | ({"kafka_url": url} if url else {}) | other
    opening = Opening(settings._build_target("settings", values), "runbook/1/I", Budget(), ReadCost(Masker()))
    return Sources(opening), opening


def test_a_source_of_a_packs_own_is_asked_by_its_name(shop: pack.Runbook) -> None:
    sources, opening = opened("kafka://broker:9092")
    assert sources.get("kafka").lag("billing") == 7
    assert [(q.source, q.rows) for q in opening.read_cost.queries] == [("kafka", 1)]
    assert sources.clocks() == {"kafka": ClockOffset(2.0, 0.1)}
    assert shop.required == {"kafka"} and {"kafka", "postgres"} <= {*shop.sources}


def test_one_that_a_target_does_not_declare_is_not_configured(shop: pack.Runbook) -> None:
    sources, _ = opened()
    with pytest.raises(SourceError) as undeclared:
        sources.get("kafka")
    assert undeclared.value.reason is Reason.NOT_CONFIGURED
    with pytest.raises(KeyError):
        sources.get("pulsar")


def test_its_address_is_checked_and_its_secret_is_masked(
    shop: pack.Runbook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="kafka_url: it does not begin with kafka://: write it like kafka://HOST"):
        opened("http://broker")
    monkeypatch.setenv("HERE", "kafka://u:s3cret-word@down:9092")
    sources, opening = opened(kafka_url="env:HERE")
    opening.read_cost.masker = Masker.of(opening.target.urls(), "I", lambda: b"salt")
    with pytest.raises(SourceError) as silent:
        sources.get("kafka").lag("billing")
    assert "s3cret-word" not in f"{silent.value.detail} {opening.read_cost.queries[0].text}"
