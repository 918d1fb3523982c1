"""What RLlib warns of by itself, on settings of its own."""


def pytest_configure(config):
    for line in (
        "ignore:.*Overriding environment rllib-:UserWarning",
        "ignore::DeprecationWarning:ray",
        "ignore::ResourceWarning",  # of its processes and sockets
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ):
        config.addinivalue_line("filterwarnings", line)
