"""What all tests share: few threads, and property tests that try the same examples in every run."""

import hypothesis
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

# A package that is installed by its test; collecting doctests in it would register its block here.
collect_ignore = ["sample_plugin"]
