"""The names of wrappers, and which of them a spec may use. Needs no torch: a spec's structure is read without it."""

from __future__ import annotations

from perception_blocks.registry import Registry

__all__ = ["ONLY_PYTHON", "WRAPPERS"]

WRAPPERS = Registry("wrapper")
WRAPPERS.register_all("composer.wrappers.interface", {"base": "BaseModelWrapper"})
WRAPPERS.register_all("composer.wrappers.hidden_state", {"hidden_state": "HiddenStateWrapper"})
WRAPPERS.register_all(
    "composer.wrappers.samples",
    {
        "argmax_sample": "ArgmaxSampleWrapper",
        "multinomial_sample": "MultinomialSampleWrapper",
        "eps_greedy_sample": "EpsGreedySampleWrapper",
        "eps_greedy_multinomial_sample": "EpsGreedyMultinomialSampleWrapper",
        "deterministic_sample": "DeterministicSampleWrapper",
        "reparam_sample": "ReparamSampleWrapper",
    },
)
WRAPPERS.register_all(
    "composer.wrappers.hybrid",
    {
        "hybrid_argmax_sample": "HybridArgmaxSampleWrapper",
        "hybrid_eps_greedy_sample": "HybridEpsGreedySampleWrapper",
        "hybrid_eps_greedy_multinomial_sample": "HybridEpsGreedyMultinomialSampleWrapper",
        "hybrid_reparam_multinomial_sample": "HybridReparamMultinomialSampleWrapper",
        "hybrid_deterministic_argmax_sample": "HybridDeterministicArgmaxSampleWrapper",
    },
)
WRAPPERS.register_all(
    "composer.wrappers.combination",
    {
        "combination_argmax_sample": "CombinationArgmaxSampleWrapper",
        "combination_multinomial_sample": "CombinationMultinomialSampleWrapper",
    },
)
WRAPPERS.register_all("composer.wrappers.noise", {"action_noise": "ActionNoiseWrapper"})
WRAPPERS.register_all(
    "composer.wrappers.second_models",
    {"target": "TargetNetworkWrapper", "teacher": "TeacherNetworkWrapper"},
)
WRAPPERS.register_all(
    "composer.wrappers.transformer",
    {
        "transformer_input": "TransformerInputWrapper",
        "transformer_segment": "TransformerSegmentWrapper",
        "transformer_memory": "TransformerMemoryWrapper",
    },
)

# Wrapper -> why a spec cannot ask for it.
ONLY_PYTHON = {
    "target": "a target is a second model that training updates",
    "teacher": "a teacher is a second model, which a spec cannot name",
    "transformer_input": "it needs a model that reads whole sequences; a gtrxl block carries its own memory",
    "transformer_segment": "it needs a model that reads whole sequences; policy.unroll reads any length",
    "transformer_memory": "it needs a model with reset_memory; hidden_state keeps the memory of a policy",
}
