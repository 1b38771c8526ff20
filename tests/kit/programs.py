"""Programs that a test needs and a machine may lack."""

from __future__ import annotations

import os
import shutil

import pytest

from runbook_lib.packs.entitlement import ROOT

DEPLOY = ROOT / "docs" / "deploy"


def tool(name: str, variable: str, package: str) -> str:
    """The path of a program; the test is skipped, or fails where it is required, when it is not installed."""
    if (found := shutil.which(name)) is None:
        if os.environ.get(variable) == "1":
            pytest.fail(f"{variable}=1 and {name} is not installed", pytrace=False)
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return found
