import pytest

from agents import cli


@pytest.fixture
def command_line(monkeypatch, capsys):
    """The command line in this process: what it said on stdout and on stderr, and its exit status."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["editenv", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        said = capsys.readouterr()
        return said.out, said.err, code

    return run
