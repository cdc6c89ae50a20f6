import pytest
import torch
import tyro

from agents.baselines.fine_tune import FineTune
from benchmarks.one_batch import Args, main, one_batch

THOROUGH = """
from agents.baselines.fine_tune import FineTune

class Thorough(FineTune):
    def __init__(self):
        super().__init__(steps=60, learning_rate=0.02)
"""


@pytest.fixture
def tiny(monkeypatch, small_world, model_folder):
    """The command's options on the tiny model, whose edited module has to be named."""
    from benchmarks import one_batch as command
    from editenv.env import LifelongEditEnv

    def make(*positional, **arguments):
        return LifelongEditEnv(*positional, **arguments, modules=["layers.2.mlp.down_proj"])

    monkeypatch.setattr(command, "LifelongEditEnv", make)
    return lambda *methods, **options: Args(methods, model=model_folder, **{"edits": 4, **options})


def test_who_stays_below_the_least_efficacy_is_named_and_fails_the_command(tiny, tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(THOROUGH)
    assert main(tiny(f"{file}:Thorough")) == 0
    assert main(tiny("no-edit", f"{file}:Thorough")) == 1
    printed = capsys.readouterr()
    assert "efficacy 100.0" in printed.out
    assert printed.err.splitlines()[-1] == "no-edit: efficacy is below 90"


def test_figures_are_means_over_batches_that_each_start_from_theta_0(tiny):
    seen = []

    class Watched(FineTune):
        def act(self, observation, info):
            lm = self._env.language_model
            seen.append((lm.snapshot(), [edit.id for edit in self._env.batch]))
            return super().act(observation, info)

    agent = Watched(steps=3, learning_rate=0.02)
    both = one_batch(agent, tiny("", batches=2), lambda what, done, total: None)
    weights, batches = zip(*seen, strict=True)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert batches[0] != batches[1]
    single = [one_batch(agent, tiny("", seed=seed), lambda what, done, total: None) for seed in (0, 1)]
    assert [entry[1] for entry in seen[2:]] == list(batches)
    for metric, value in both.items():
        assert value == pytest.approx((single[0][metric] + single[1][metric]) / 2, abs=1e-3)


def test_settings_of_another_folder_are_taken(tiny, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "fine-tune.json").write_text('{"settings": {"steps": 60, "learning_rate": 0.02}, "chosen": "here"}')
    monkeypatch.setattr("agents.settings.settings_path", lambda method, model: tmp_path / model / f"{method}.json")
    assert main(tiny("fine-tune", settings="alone")) == 0
    assert "efficacy 100.0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"rome.*alone"):
        main(tiny("rome", settings="alone"))
    with pytest.raises(SystemExit, match="no-edit"):
        main(tiny("no-edit", settings="alone"))


def test_an_unknown_method_is_named_before_anything_runs(tiny):
    with pytest.raises(SystemExit, match="rl-edit"):
        main(tiny("no-edit", "rl-edit"))


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Args, args=["--help"])
    shown = capsys.readouterr().out
    assert "theta_0" in shown
    assert "--least-efficacy" in shown
    assert tyro.cli(Args, args=["rome", "--floor", "95"]).least_efficacy == 95, "its name before goes on working"
