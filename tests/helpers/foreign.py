"""Configurations of other libraries, written to files and imported."""

import torch
import yaml

import composer


def imported(folder, text, file="config.yaml", **arguments):
    """What becomes of a configuration with this ``text``; its YAML says what its data say."""
    path = folder / file
    path.write_text(text)
    result = composer.import_config(path, **arguments)
    assert yaml.safe_load(result.to_yaml()) == result.spec
    return result


def refusal(folder, text, file="config.yaml", **arguments):
    """The message with which it is refused, without the folder."""
    try:
        imported(folder, text, file, **arguments)
    except composer.SpecError as error:
        return str(error).replace(f"{folder}/", "")
    raise AssertionError("it was not refused")


def adopted(result, tensors, observation_space, action_space):
    """A model of the imported spec with the ``tensors`` of the other library, every one of which is met."""
    model = composer.compose(
        result.spec, observation_space=observation_space, action_space=action_space, seed=0
    )
    report = composer.adopt_weights(model, tensors, result.weights, strict=True)
    assert report.skipped == []
    return model.eval()


def outputs(model, x):
    """Logits and values (B, 1) of observations ``x``; with memory, of their first step."""
    with torch.no_grad():
        states = (model.initial_state(len(x)),) if model.has_memory else ()
        logits, values, *_ = model(x, *states)
    value = values["value"]
    return logits["action"], value.reshape(-1, 1)


def drawn(module):
    """``module`` with weights that are not small."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())
