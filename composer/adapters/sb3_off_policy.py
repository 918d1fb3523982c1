"""Policies for Stable-Baselines3, by the path that earlier agents contain."""

from composer.adapters.sb3.off_policy import QPolicy, SACPolicy, TD3Policy

__all__ = ["QPolicy", "SACPolicy", "TD3Policy"]
