"""The distributions of discrete actions, by the path that pages have taught."""

from composer.distributions.discrete import Bernoulli, Categorical, MultiCategorical

__all__ = ["Bernoulli", "Categorical", "MultiCategorical"]
