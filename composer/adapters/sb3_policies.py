"""Policies for Stable-Baselines3, by the path that earlier agents contain."""

from composer.adapters.sb3.policies import ActorCritic

__all__ = ["ActorCritic"]
