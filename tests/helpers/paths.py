"""Where the tests find the folders of this project."""

from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
CONFIGS = ROOT / "configs"
# Specs with a policy; that of an action model has tests of its own.
POLICIES = [path for path in sorted(CONFIGS.glob("*.yaml")) if path.stem != "tiny_vla"]
