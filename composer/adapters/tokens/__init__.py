"""Sequences of tokens that grow, as environments of TorchRL and gymnasium."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["TokenDataset", "TokenEnv", "TokenGym", "UnknownTokenError", "Vocabulary"]
__all__ += ["sample_sequences", "token_modules", "token_spaces"]

if TYPE_CHECKING:
    from composer.adapters.tokens.datasets import TokenDataset
    from composer.adapters.tokens.gym_env import TokenGym, token_spaces
    from composer.adapters.tokens.modules import sample_sequences, token_modules
    from composer.adapters.tokens.torchrl_env import TokenEnv
    from composer.adapters.tokens.vocabulary import UnknownTokenError, Vocabulary
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "datasets": "TokenDataset",
            "gym_env": "TokenGym token_spaces",
            "modules": "sample_sequences token_modules",
            "torchrl_env": "TokenEnv",
            "vocabulary": "UnknownTokenError Vocabulary",
        },
    )
