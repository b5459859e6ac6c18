import inspect

import typer
from typer.testing import CliRunner

from hessprune.lab.options import volume, with_volume


def test_every_command_gets_the_two_flags_and_keeps_its_own():
    app, seen = typer.Typer(), []

    @app.command()
    @with_volume
    def work(number: int, name: str = "a") -> None:
        seen.append((number, name, volume()))

    for words in (["3"], ["3", "-q"], ["3", "--name", "b", "-v"]):
        assert CliRunner().invoke(app, words).exit_code == 0
    assert seen == [(3, "a", "normal"), (3, "a", "quiet"), (3, "b", "verbose")]
    assert volume() == "normal"
    assert list(inspect.signature(work).parameters) == ["number", "name", "quiet", "verbose"]
