"""The commands on runs that have been: `composer eval` and `composer compare`."""

from __future__ import annotations

import argparse
import json

from composer.cli.train import add_repeatable, parsed

__all__ = ["add_compare_options", "add_eval_options", "run_compare", "run_eval"]


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "path",
        metavar="FILE",
        help="a checkpoint, or the folder of a run, of which the best model is taken",
    )
    add("--env", metavar="ID", help="the environment (default: that of the run, or of the spec)")
    add("--episodes", metavar="N", type=int, default=20, help="number of episodes (default: 20)")
    add("--seed", metavar="N", type=int, default=0, help="seed of the episodes (default: 0)")
    add_repeatable(
        add, "--env-set", "env_set", "an argument of the environment, such as max_episode_steps=200"
    )
    text = "a module that the spec may use, or that makes the environment known"
    add("--allow", metavar="MODULE", action="append", default=[], help=f"{text} (repeatable)")
    add("--json", action="store_true", help="print the returns and lengths of all episodes as JSON")
    add("--record", metavar="DIR", help="write a video of the first episode to this folder")


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    text = "folders of runs, or folders that hold such folders"
    parser.add_argument("paths", metavar="DIR", nargs="+", help=text)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run_eval(arguments: argparse.Namespace) -> tuple[str, int]:
    """What there is to say, and the exit status."""
    from composer.training.judging import judge
    from composer.training.trainer import TrainingError

    env_set, problems = parsed(arguments.env_set, "--env-set")
    if problems:
        raise TrainingError("\n  ".join(problems))
    evaluation = judge(
        arguments.path, env=arguments.env, episodes=arguments.episodes, seed=arguments.seed, env_set=env_set,
        allow=arguments.allow, record=arguments.record,
    )  # fmt: skip
    if evaluation is None:
        return "interrupted", 130
    if not arguments.json:
        wrote = f"\nwrote {evaluation.video}" if evaluation.video else ""
        return f"{evaluation}{wrote}", 0
    numbers = {"mean": evaluation.mean, "std": evaluation.std}
    numbers |= {"video": evaluation.video} if evaluation.video else {}
    return json.dumps(
        {**numbers, "returns": evaluation.returns, "lengths": evaluation.lengths}, indent=2
    ), 0


def run_compare(arguments: argparse.Namespace) -> str:
    from composer.training.compare import compare

    comparison = compare(arguments.paths)
    return json.dumps(comparison.to_json(), indent=2) if arguments.json else str(comparison)
