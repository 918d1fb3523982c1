"""Policies for Stable-Baselines3, by the path that earlier agents contain."""

from composer.adapters.sb3.contrib import MaskableActorCritic, RecurrentActorCritic

__all__ = ["MaskableActorCritic", "RecurrentActorCritic"]
