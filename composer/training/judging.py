"""`composer eval`: whole episodes with a model from a file, or with the best model of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from composer.atomic import replace_with
from composer.errors import Problem, SpecError
from composer.limits import GivenLimits
from composer.model import Model, load
from composer.policy.structured import one_policy
from composer.spaces.json_form import spaces_differ
from composer.spaces.lookup import environment_spaces, is_by_actor
from composer.training.environment import EnvironmentMaker
from composer.training.evaluation import Evaluation, acting, evaluate, greedy
from composer.training.exclusive import answer
from composer.training.folder import RunFolder, best_model
from composer.training.interruption import interruption_noted
from composer.training.options import refuse_counts
from composer.training.trainer import TrainingError
from composer.training.video import film, require_imageio, why_not_filmed
from composer.trust import allow_list, check_environment, import_allowed

__all__ = ["judge", "model_file"]


def model_file(path: str | Path) -> str:
    """``path``, or the best model of the run that it is the folder of. Raises TrainingError for runs of many seeds."""
    folder = Path(path)
    if answer(folder / "run.json", Path.exists):
        model = best_model(folder)
        return str(model) if answer(model, Path.exists) else str(path)
    if answer(folder / "seeds.json", Path.exists):
        first = next(iter(sorted(folder.glob("seed-*"))), folder / "seed-0")
        raise TrainingError(f"{str(path)!r} holds runs with several seeds; name one: {first}")
    return str(path)


def judge(
    path: str | Path,
    *,
    env: str | None = None,
    episodes: int = 20,
    seed: int = 0,
    env_set: Mapping[str, Any] | None = None,
    allow: Iterable[str] = (),
    limits: GivenLimits = None,
    record: str | Path | None = None,
) -> Evaluation | None:
    """Play ``episodes`` without exploration; None where Ctrl-C came.

    ``path`` is a checkpoint or the folder of a run, whose environment, arguments and masks are taken where ``env`` is
    not given. The same ``seed`` gives the episodes of the run's own evaluation. ``record`` is a folder for a video of
    the first episode, ``episode-0.mp4``. Raises TrainingError and SpecError.
    """
    allow = allow_list(allow)
    import_allowed(allow)
    refuse_counts(eval_episodes=episodes, seed=seed)
    if record is not None:
        require_imageio("--record")
    task = RunFolder.open(Path(path)).task if answer(Path(path) / "run.json", Path.exists) else None
    model = load(model_file(path), allow, limits=limits)
    name = env or (task.environment if task else model.source.data.get("environment"))
    if not isinstance(name, str):
        raise TrainingError(f"{str(path)!r} names no environment; give one with --env ID")
    if problem := check_environment(name, allow):
        raise SpecError([Problem(problem)])
    given = {**(task.env_set if task and env is None else {}), **(env_set or {})}
    maker = EnvironmentMaker(name, given, previous=model.spec.previous)
    _refuse_other(model, maker)
    if record is not None and (wrong := why_not_filmed(maker, "--record")):
        raise TrainingError(wrong)
    # A trainer that does not ask for masks has not learned with them; of a checkpoint that is not known.
    masked = task is None or task.algorithm == "maskable_ppo"
    act = greedy(one_policy(model.policy), masked=masked)
    with interruption_noted(lambda: "evaluating") as interruption, acting(model):
        stop = partial(bool, interruption)
        evaluation = evaluate(act, maker, episodes, seed, stop)
        if evaluation is None or record is None:
            return evaluation
        file = Path(record) / "episode-0.mp4"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_with(file, lambda name: film(act, maker, seed, name, stop))
        except OSError as error:
            raise TrainingError(f"--record: {error}") from error
        return None if interruption else replace(evaluation, video=str(file))


def _refuse_other(model: Model, maker: EnvironmentMaker) -> None:
    """Raise TrainingError where the environment has other spaces than the model, or several actors."""
    if is_by_actor(model.observation_space):
        raise TrainingError(
            "the model is of several steps or agents; evaluate it in a loop with model.policy.act"
        )
    env = maker()
    try:
        spaces = environment_spaces(env)
    finally:
        env.close()
    pairs = zip(
        ("observation", "action"),
        (model.observation_space, model.action_space),
        spaces,
        strict=True,
    )
    problems = [line for root, mine, theirs in pairs for line in spaces_differ(mine, theirs, root)]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise TrainingError(f"the model is for other spaces than those of {maker.name!r}:{lines}")
