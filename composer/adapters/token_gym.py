"""`composer.adapters.tokens`' environment for gymnasium, by the path that pages and saved specs contain."""

from composer.adapters.tokens.gym_env import TokenGym, token_spaces

__all__ = ["TokenGym", "token_spaces"]
