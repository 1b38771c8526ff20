"""What a session says to cells of one's own."""

from __future__ import annotations

from unittest.mock import Mock, patch

import pandas as pd
import pytest

from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session
from tests.kit.frames.delivery import SHAPES
from tests.kit.steps import open_target


def opened() -> Session:
    return Session(open_target("4.1", {"database_url": "postgresql://127.0.0.1:9/x"}, incident_id="A"))


def test_a_frame_draws_itself() -> None:
    with pytest.raises(UsageError, match=r"draw a frame with its own \.plot\(\)"):
        opened().chart(pd.DataFrame())  # type: ignore[arg-type]


def test_a_chart_that_cannot_be_drawn_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    rb = opened()
    rb.findings["4.1.1"] = Mock(frames=SHAPES["4.1.1"]())
    with patch("runbook_lib.view.charts.draw", side_effect=ValueError("odd")):
        rb.chart("4.1.1")
    assert capsys.readouterr().out.count("The chart could not be drawn: ValueError: odd") == 2


def test_what_a_pack_adds_is_named_where_a_notebook_completes() -> None:
    rb = opened()
    assert "event" in dir(rb)
    with pytest.raises(AttributeError, match="did you mean 'event'"):
        rb.even  # noqa: B018
