"""`composer.adapters.tokens`' environment for TorchRL, by the path that pages have taught."""

from composer.adapters.tokens.torchrl_env import TokenEnv

__all__ = ["TokenEnv"]
