"""A reward function that is an interface where it is defined."""

from composer.dataflow import reward_function


@reward_function
def decorated(prompts, completions):
    return [3.0 for _ in prompts]
