"""The run configs in configs/trainers train, shortened; the figures of docs/tuned.md come from the CSV beside them."""

import csv
import re
from collections import defaultdict

import pytest

from composer.cli.commands import main
from tests.helpers.paths import CONFIGS, ROOT

NAMES = (
    "cartpole", "double_pendulum", "lander", "memory", "spread", "spread_ippo", "spread_alone",
    "spread_alone_ippo",
)  # fmt: skip
SHORT = ["n_steps=32", "batch_size=32", "n_epochs=1"]


# Box2D, while it is imported: as an error the warning would end the process.
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_tuned_run_config_trains(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = str(CONFIGS / "trainers" / f"{name}.yaml")
    short = [part for setting in SHORT for part in ("--set-algorithm", setting)]
    few = ["--steps", "64", "--envs", "2", "--eval-episodes", "1"]
    allowed = ["--allow", "minigrid", "-o", str(tmp_path / "run")]
    status = main(["train", "--config", config, *few, *allowed, *short])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert out.startswith("trained for 64 steps; without exploration: mean return ")


def last_means(name):
    """By algorithm and seed, the last mean return of a curve."""
    means: dict[tuple[str, str], list[float]] = defaultdict(list)
    with open(ROOT / "docs" / "curves" / f"{name}.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            means[row["algorithm"], row["seed"]].append(float(row["return_mean_100"]))
    return {key: values[-1] for key, values in means.items()}


@pytest.mark.parametrize("page", ["tuned", "multi-agent-training"])
def test_the_curves_of_a_page_have_the_figures_that_it_tells(page):
    """Rows such as ``| `lander` | ppo, seed 1 | 152.3 | ... |``, and a picture of each."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+), seed (\d+) \| (-?[\d.,]+) \|", text, re.M)
    assert rows
    for name, algorithm, seed, mean in rows:
        got = last_means(name)[algorithm, seed]
        assert float(mean.replace(",", "")) == pytest.approx(got, abs=0.06)
        assert f"(curves/{name}.png)" in text
        assert (ROOT / "docs" / "curves" / f"{name}.png").stat().st_size > 1000
