"""Logits as actions: one distribution for every kind of action space."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = [
    "ActionDistribution",
    "ActionDistributions",
    "AutoregressiveDistribution",
    "Bernoulli",
    "Beta",
    "Candidates",
    "Categorical",
    "CompositeDistribution",
    "DISTRIBUTIONS",
    "Deterministic",
    "Distribution",
    "DistributionRuleError",
    "GSDE",
    "Gaussian",
    "MultiCategorical",
    "SquashedGaussian",
    "build_distributions",
]

if TYPE_CHECKING:
    from composer.distributions.autoregressive import AutoregressiveDistribution
    from composer.distributions.base import DISTRIBUTIONS, ActionDistribution, Distribution
    from composer.distributions.beta import Beta
    from composer.distributions.candidates import Candidates
    from composer.distributions.continuous import Gaussian, SquashedGaussian
    from composer.distributions.deterministic import Deterministic
    from composer.distributions.discrete import Bernoulli, Categorical, MultiCategorical
    from composer.distributions.gsde import GSDE
    from composer.distributions.joint import ActionDistributions, CompositeDistribution
    from composer.distributions.rules import DistributionRuleError, build_distributions
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "autoregressive": "AutoregressiveDistribution",
            "base": "DISTRIBUTIONS ActionDistribution Distribution",
            "beta": "Beta",
            "candidates": "Candidates",
            "continuous": "Gaussian SquashedGaussian",
            "deterministic": "Deterministic",
            "discrete": "Bernoulli Categorical MultiCategorical",
            "gsde": "GSDE",
            "joint": "ActionDistributions CompositeDistribution",
            "rules": "DistributionRuleError build_distributions",
        },
    )
