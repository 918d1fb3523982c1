"""What the config of an actor or critic may say, and what of it the spec says instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from composer.model import Model
from perception_blocks.words import hint

__all__ = ["KNOWN", "model_given", "setting_problems"]

KNOWN = ("spec", "allow", "seed", "weights", "observation_space", "action_space")
# What rsl_rl's own models are made of, and where the spec says it.
OF_THE_SPEC = {
    "hidden_dims": "hidden_units of a dense block",
    "activation": "activation of a block",
    "obs_normalization": "normalize: [...] at its top",
    "distribution_cfg": "the entries of 'distributions'",
    "rnn_type": "block: lstm or block: gru in the graph",
    "rnn_hidden_dim": "hidden_units of the lstm or gru block",
    "rnn_num_layers": "num_layers of the lstm or gru block",
    "cnn_cfg": "blocks such as strided_conv in the graph",
    "cnns": "shares: [...] under 'policy'",
    "init_noise_std": "init_log_std in an entry of 'distributions'",
    "noise_std_type": "log_std in an entry of 'distributions'",
    "state_dependent_std": "log_std in an entry of 'distributions'",
}


def setting_problems(settings: Mapping[str, object]) -> Iterator[str]:
    """Why ``settings`` of a config, beside those `KNOWN`, cannot stand beside a spec."""
    for name in settings:
        if name in OF_THE_SPEC:
            yield f"{name!r} is said by the spec: {OF_THE_SPEC[name]}; leave it out of the config"
        else:
            yield f"{name!r} is no setting{hint(name, KNOWN)}"


def model_given(spec: object) -> Iterator[str]:
    """Why a Model in the config is refused."""
    if isinstance(spec, Model):
        yield (
            "'spec' is a Model, and rsl_rl copies its config, so that your model would stay as it is; write "
            "model.save('agent.safetensors'), and give spec: model.source and weights: 'agent.safetensors'"
        )
    elif spec is None:
        yield "there is no 'spec'; give the YAML text of one, or the path of its file"
