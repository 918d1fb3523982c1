"""No spec runs code that its caller did not allow."""

import pickle
import sys
import textwrap

import pytest
from torch import nn

from composer.trust import PathError, allow_list, check_trusted, import_allowed, import_trusted

NETS = """
    import os
    import json.decoder
    from torch import nn
    from other_nets import Borrowed

    class Critic(nn.Module):
        class Inner(nn.Module): ...

    class Plain: ...

    critic = Critic()

    def build(): ...
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A package ``my_nets`` with a submodule, and the modules beside it."""
    files = {
        "my_nets/__init__.py": textwrap.dedent(NETS),
        "my_nets/deep.py": "from torch import nn\nclass Deep(nn.Module): ...\n",
        "other_nets.py": "from torch import nn\nclass Borrowed(nn.Module): ...\n",
        "failing_nets.py": "raise RuntimeError('no weights on the disk')\n",
        "needy_nets.py": "import a_module_that_is_nowhere\n",
    }
    (tmp_path / "my_nets").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def message_of(path, allow=(), base=nn.Module) -> str:
    with pytest.raises(PathError) as caught:
        import_trusted(path, allow, base)
    return str(caught.value)


@pytest.mark.parametrize(
    "path", ["torch.nn.LayerNorm", "torch.nn.modules.linear.Linear", "my_nets.Critic", "my_nets"]
)
def test_torch_modules_and_allowed_modules_are_trusted(path):
    assert check_trusted(path, ["my_nets"]) is None


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "my_nets2.Critic",
        "my.nets",
        "torch.load",
        "torch.nn.functional.relu",
        "torch.nn.init",
        "torch.nn.LayerNorm.__class__",
        "torch.nn.utils.Thing",
        "torchx.nn.LayerNorm",
    ],
)
def test_whatever_else_is_not(path):
    top = path.split(".")[0]
    assert check_trusted(path, ["my_nets"]) == (
        f"{path!r} is outside the allowed modules (my_nets); "
        f"pass allow=[{top!r}] or --allow {top} if you trust it"
    )


@pytest.mark.parametrize(
    "path", ["", ".", "a.", ".a", "a b", "a..b", "os.system('x')", "a\n", "1.a"]
)
def test_what_is_no_path_is_named(path):
    assert check_trusted(path, ["a"]) == f"{path!r} is not a dotted path such as 'my_nets.Critic'"


def test_classes_are_found_in_modules_submodules_and_classes(nets):
    assert import_trusted("torch.nn.LayerNorm", [], nn.Module) is nn.LayerNorm
    assert import_trusted("my_nets.Critic", ["my_nets"], nn.Module).__name__ == "Critic"
    assert import_trusted("my_nets.deep.Deep", ["my_nets"], nn.Module).__name__ == "Deep"
    assert import_trusted("my_nets.deep.Deep", ["my_nets.deep"], nn.Module).__name__ == "Deep"
    assert import_trusted("my_nets.Critic.Inner", ["my_nets"], nn.Module).__name__ == "Inner"


def test_allowed_modules_are_imported_first(nets):
    import_allowed(["my_nets.deep"])
    assert "my_nets.deep" in sys.modules


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_nets.Crtic", "'my_nets' has no 'Crtic'; did you mean 'Critic'?"),
        ("my_nets.dep.Deep", "'my_nets' has no 'dep'"),
        ("my_nets.build", "'my_nets.build' is not a class but a function"),
        ("my_nets.critic", "'my_nets.critic' is not a class but an object of type 'Critic'"),
        ("my_nets.critic.forward", "'my_nets.critic.forward' leads through 'my_nets.critic', which is an object of type 'Critic'"),
        ("my_nets.deep", "'my_nets.deep' is not a class but a module"),
        ("my_nets.Plain", "'my_nets.Plain' is no subclass of torch.nn.Module"),
        ("my_nets.os.system", "'my_nets.os.system' leads through 'os', outside the allowed modules"),
        ("my_nets.json.decoder.JSONDecoder", "'my_nets.json.decoder.JSONDecoder' leads through 'json', outside the allowed modules"),
        ("my_nets.Borrowed", "'my_nets.Borrowed' lives in 'other_nets', outside the allowed modules (my_nets); name it by the module that defines it, and allow that one"),
        ("torch.nn.Lineer", "'torch.nn' has no 'Lineer'; did you mean 'Linear'?"),
        ("torch.nn.Parameter", "'torch.nn.Parameter' lives in 'torch.nn.parameter', outside the allowed modules (my_nets); name it by the module that defines it, and allow that one"),
    ],
)  # fmt: skip
def test_what_is_not_the_class_that_is_needed_is_named(nets, path, message):
    assert message_of(path, ["my_nets"]) == message


def test_modules_that_cannot_be_imported_are_named_with_their_traceback(nets):
    assert message_of("no_nets.A", ["no_nets"]) == (
        "there is no module 'no_nets'; is its folder on PYTHONPATH, or the current folder?"
    )
    assert message_of("needy_nets.A", ["needy_nets"]) == (
        "the module 'needy_nets' cannot be imported: No module named 'a_module_that_is_nowhere'"
    )
    with pytest.raises(PathError) as caught:
        import_trusted("failing_nets.A", ["failing_nets"], nn.Module)
    assert str(caught.value) == (
        "the module 'failing_nets' cannot be imported: RuntimeError: no weights on the disk"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("allow", "message"),
    [
        ("my_nets", "allow is a list of modules, got the text 'my_nets'; write allow=['my_nets']"),
        ([3], "allow holds the names of modules, got an object of type 'int': 3"),
    ],
)
def test_what_is_no_list_of_modules_is_said(allow, message):
    with pytest.raises(PathError) as caught:
        allow_list(allow)
    assert str(caught.value) == message


def test_nothing_is_imported_before_it_is_trusted(nets):
    message_of("my_nets.Critic", ["other_nets.Borrowed.x"])
    assert "my_nets" not in sys.modules


def test_a_path_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(PathError("wrong")))
    assert (type(error), str(error)) == (PathError, "wrong")
