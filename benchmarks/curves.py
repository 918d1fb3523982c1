"""The curves of docs/tuned.md and docs/multi-agent-training.md, from the folders of runs: one CSV and one picture.

    python benchmarks/curves.py docs/curves/lander runs/lander-1 runs/lander-2 runs/lander-3
    python benchmarks/curves.py docs/curves/spread runs/mappo-* runs/ippo-* --random

Runs of one algorithm, which differ in their seeds, are one line: their mean, with the lowest and highest of them as a
band. With --random a level shows what uniformly random actions get, over 500 episodes.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from composer.training.environment import JointEnvironment, training_environment  # noqa: E402

EPISODES = 500

Points = list[tuple[int, float]]
"""Steps, and the mean return of the 100 episodes before."""


def read_run(folder: Path) -> tuple[dict[str, Any], Points, dict[str, Any]]:
    """The task, the points of the curve and the evaluation of a run."""
    task = json.loads((folder / "run.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    with open(folder / "curve.csv", newline="", encoding="utf-8") as file:
        points = [(int(row["step"]), float(row["return_mean_100"])) for row in csv.DictReader(file)]
    return task, points, evaluation


def random_return(environment: str) -> float:
    """The mean return of uniformly random actions."""
    env = training_environment(environment)
    by_agent = env.action_spaces if isinstance(env, JointEnvironment) else {None: env.action_space}
    for index, space in enumerate(by_agent.values()):
        space.seed(index)
    returns = []
    for episode in range(EPISODES):
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            action: Any = {agent: space.sample() for agent, space in by_agent.items()}
            if isinstance(env, JointEnvironment):
                action = {agent: action[agent] for agent in env.agents}
            else:
                action = action[None]
            _, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return fmean(returns)


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["algorithm", "seed", "step", "return_mean_100"])
        writer.writerows(rows)


def draw(path: Path, title: str, lines: Mapping[str, list[Points]], level: float | None) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for algorithm, runs in lines.items():
        count = min(len(points) for points in runs)  # the runs have equal rows but for the last
        steps = [runs[0][row][0] for row in range(count)]
        values = [[points[row][1] for points in runs] for row in range(count)]
        seeds = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
        (line,) = axes.plot(steps, [fmean(v) for v in values], label=f"{algorithm}, {seeds}")
        low, high = ([end(v) for v in values] for end in (min, max))
        axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, color=line.get_color())
    if level is not None:
        axes.axhline(level, color="gray", linestyle="--", label="random actions")
    axes.set_title(title)
    axes.set_xlabel("steps of the environment")
    axes.set_ylabel("mean return of the last 100 episodes")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=100, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Curves of runs as one CSV and one picture.")
    parser.add_argument("out", type=Path, help="without extension")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--random", action="store_true", help="show what random actions get")
    given = parser.parse_args()
    lines: dict[str, list[Points]] = {}
    rows: list[tuple[object, ...]] = []
    environment = ""
    for folder in given.runs:
        task, points, evaluation = read_run(folder)
        environment = task["environment"]
        lines.setdefault(task["algorithm"], []).append(points)
        rows += [(task["algorithm"], task["seed"], step, round(mean, 4)) for step, mean in points]
        print(
            f"{task['algorithm']} seed {task['seed']}: {points[-1][0]:,} steps, last 100 training episodes "
            f"{points[-1][1]:.2f}, without exploration {fmean(evaluation['returns']):.2f}"
        )
    level = random_return(environment) if given.random else None
    if level is not None:
        print(f"random actions: {level:.2f} over {EPISODES} episodes")
    write_csv(given.out.with_suffix(".csv"), rows)
    draw(given.out.with_suffix(".png"), environment, lines, level)


if __name__ == "__main__":
    main()
