"""What RLlib's PPO reports while it trains: steps, episodes, and when it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from composer.adapters.rllib.learner import ComposedLearner
from composer.training.trainer import Episode, Phase, Report, StoppedError, no_phase

__all__ = ["Reporter", "ReportingLearner", "learner_of"]


class Reporter:
    """Counts steps and episodes and reports them: in this process each step, of other processes whole rollouts."""

    def __init__(self) -> None:
        self.steps = 0
        self.report: Report
        self.phase: Phase = no_phase
        self.forget()

    def __deepcopy__(self, memo: object) -> Reporter:
        return self  # RLlib copies its configs

    def __reduce__(self) -> tuple[type[Reporter], tuple[()]]:
        return type(self), ()  # other processes report nothing

    def forget(self) -> None:
        """Episodes begin anew."""
        self._running: dict[str, Episode] = {}

    def step(self, *, episode: SingleAgentEpisode, **_: Any) -> None:
        """A step of one environment."""
        self._add(episode, float(episode.get_rewards(-1)), 1)
        self._tell([])

    def end(self, *, episode: SingleAgentEpisode, **_: Any) -> None:
        """An episode is over. RLlib has lengthened its earlier chunks by a step when it learned from them."""
        self._tell([self._running.pop(episode.id_)])

    def rollout(self, chunks: Sequence[SingleAgentEpisode]) -> None:
        """What other processes have collected."""
        for chunk in chunks:
            self._add(chunk, float(chunk.get_return()), len(chunk))
        self._tell([self._running.pop(chunk.id_) for chunk in chunks if chunk.is_done])

    def _add(self, episode: SingleAgentEpisode, total: float, length: int) -> None:
        before = self._running.get(episode.id_, Episode(0.0, 0))
        self._running[episode.id_] = Episode(before.total + total, before.length + length)
        self.steps += length

    def _tell(self, episodes: Sequence[Episode]) -> None:
        if not self.report(self.steps, episodes):
            raise StoppedError


class ReportingLearner(ComposedLearner):
    """A learner that says when it learns."""

    reporter: Reporter

    def update(self, *given: Any, training_data: Any = None, **settings: Any) -> Any:
        if self.config.num_env_runners:
            self.reporter.rollout(training_data.episodes)
        self.reporter.phase("updating")
        return super().update(*given, training_data=training_data, **settings)


def learner_of(algorithm: Algorithm) -> ReportingLearner:
    learner = algorithm.learner_group._learner  # type: ignore[union-attr]
    assert isinstance(learner, ReportingLearner)
    return learner
