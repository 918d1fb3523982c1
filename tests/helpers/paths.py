"""Where the tests find the folders of this project."""

from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
CONFIGS = ROOT / "configs"
