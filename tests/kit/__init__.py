"""What the tests share. No test imports another."""

from pathlib import Path

#: The checkout.
ROOT = Path(__file__).resolve().parents[2]
#: What `make record` writes, with `index.json`.
RECORDINGS = ROOT / "tests" / "recordings"
