"""What BenchMARL and the TorchRL that it needs warn of by themselves."""


def pytest_configure(config):
    for line in (
        "ignore::DeprecationWarning:benchmarl",
        "ignore::DeprecationWarning:torchrl",
        "ignore:.*has been deprecated:DeprecationWarning",
        "ignore:No episode terminated this iteration:UserWarning",
        "ignore::ResourceWarning",
    ):
        config.addinivalue_line("filterwarnings", line)
