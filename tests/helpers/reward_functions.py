"""Reward functions that another process can import, good ones and bad ones."""

import os
import time

import numpy as np


def brevity(prompts, completions):
    return [-float(len(completion)) for completion in completions]


def matches(prompts, completions, label, weight=2.0):
    return [weight * (name in completion) for completion, name in zip(completions, label)]


def sleeps(prompts, completions):
    time.sleep(60 if "b" in completions[0] else 0)
    return [0.0] * len(completions)


def ends_its_process(prompts, completions):
    os._exit(3)


def fails_at_c(prompts, completions):
    return [1 / ("c" not in completion) for completion in completions]


def an_array(prompts, completions):
    return np.ones(len(prompts))


def cannot_be_sent(prompts, completions):
    return lambda: None


class Scores:
    @staticmethod
    def brevity(prompts, completions):
        return brevity(prompts, completions)
