"""What all tests share: few threads, and property tests that try the same examples in every run."""

import hypothesis
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")
