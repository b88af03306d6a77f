"""Where the repository is, and the real data that not every machine has."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Tests on real data are skipped where this directory is missing.
SHARED = ROOT.parent / "shared"
