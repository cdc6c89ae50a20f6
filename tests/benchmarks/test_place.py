import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from agents.covariance import key_covariance, load_covariance
from agents.registry import make_agent
from benchmarks import figures, place
from benchmarks.place import Args, EditedLayer, Row, choose_layers, main
from benchmarks.results.charts import digest, draw, saved_digest
from benchmarks.results.place import Trial, as_markdown, best_steps, chart, read_effects, read_trials
from benchmarks.results.statistics import harmonic_mean
from benchmarks.running import rollout
from benchmarks.suites import find
from editenv.data import load_edits
from editenv.language_model.editable_lm import EditableLM
from editenv.models import load_model

SUITE = "atlas-50x20-validation@1"
METRICS = ("efficacy", "generalization", "specificity")


def scores(*values):
    return dict(zip(METRICS, values, strict=True))


# ---- the whole command


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One batch, two layers of the miniature."""
    out = tmp_path_factory.mktemp("place")
    args = Args(
        out,
        SUITE,
        rows=("ultraedit", "memit-seq@subject-last"),
        layers=(3, 2),
        steps=(1.0,),
        facts=2,
        draws=1,
        texts=40,
    )
    return SimpleNamespace(args=args, status=main(args), out=out)


def test_trials_trace_table_and_figures_are_written(measured):
    assert measured.status == 0
    trials = read_trials(measured.out / "place.jsonl")
    keys = [(row, layer, step) for layer in (2, 3) for row in measured.args.rows for step in (1.0,)]
    assert [trial.key for trial in trials] == keys
    assert {trial.modules for trial in trials} == {(f"model.layers.{layer}.mlp.down_proj",) for layer in (2, 3)}
    for trial in trials:
        at_last_layer = trial.row.startswith("memit") and trial.layer == 3
        assert (trial.error is not None) == at_last_layer
        assert (trial.score > 0) != at_last_layer
    assert "behind which no token sees another" in trials[-1].error
    effects = read_effects(measured.out / "trace.json")
    assert (effects.facts, {len(v) for v in effects.indirect["MLP"].values()}) == (2, {4})
    table = (measured.out / "place.md").read_text()
    assert "| memit-seq@subject-last | 3 | - | could not edit here |" in table
    for name in ("place", "place-prefix"):
        for ending in ("png", "svg"):
            assert (measured.out / f"{name}.{ending}").stat().st_size > 10_000


def test_a_trial_is_what_benchmarks_run_measures(measured):
    suite = replace(find(SUITE), protocols=("teacher_forced", "generation", "generation_prefix"))
    suite = suite.at(None, None, ("model.layers.3.mlp.down_proj",))
    record = rollout.run(suite, "ultraedit", make_agent("ultraedit"), 0)
    (trial,) = [t for t in read_trials(measured.out / "place.jsonl") if t.key == ("ultraedit", 3, 1.0)]
    assert trial.teacher_forced == record.teacher_forced
    assert trial.generation_prefix == record.generation_prefix


def test_the_same_command_again_runs_nothing_and_more_layers_only_those(measured, monkeypatch, capsys):
    before = (measured.out / "place.jsonl").read_bytes(), (measured.out / "trace.json").read_bytes()
    ran = []

    def run(self, row, trial, progress):
        ran.append(trial.key)
        return replace(trial, teacher_forced=scores(1.0, 1.0, 1.0), generation_prefix=scores(1.0, 1.0, 1.0))

    monkeypatch.setattr(EditedLayer, "run", run)
    monkeypatch.setattr(place, "save", lambda shown, path: None)
    assert main(measured.args) == 0
    assert ran == []
    assert before == ((measured.out / "place.jsonl").read_bytes(), (measured.out / "trace.json").read_bytes())
    assert main(replace(measured.args, out=measured.out, layers=(1,), rows=("ultraedit",), steps=(2.0,))) == 0
    assert ran == [("ultraedit", 1, 2.0)]
    for changes, words in (({"seed": 1}, "about"), ({"texts": 41}, "about")):
        with pytest.raises(SystemExit, match=f"was made with {words} .*choose another --out"):
            main(replace(measured.args, **changes))
    monkeypatch.setattr(Row, "at_step", lambda row, step: {"ridge": 0.5})
    with pytest.raises(SystemExit, match=r"trial of ultraedit at layer 2, step 1, was made with settings"):
        main(measured.args)


def test_a_kill_costs_the_running_trial(tmp_path, monkeypatch, capsys):
    ran = []

    def run(self, row, trial, progress):
        ran.append(trial.key)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return replace(trial, error="it cannot")

    monkeypatch.setattr(EditedLayer, "run", run)
    args = Args(tmp_path, SUITE, rows=("ultraedit",), layers=(0, 1), steps=(1.0, 2.0), facts=0)
    with pytest.raises(KeyboardInterrupt):
        main(args)
    assert [trial.key for trial in read_trials(tmp_path / "place.jsonl")] == ran[:2]
    assert main(args) == 1, "every trial of the row ended in an error"
    assert ran[3:] == [("ultraedit", 1, 1.0), ("ultraedit", 1, 2.0)]
    assert "ultraedit: it cannot" in capsys.readouterr().err
    assert not (tmp_path / "place.png").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "atlas-50x20@1"}, "is of split test: choices are never made on the test split"),
        ({"suite": "no-suite"}, "unknown suite"),
        ({"steps": (1.0, 0.0)}, "steps: must be positive, not 1, 0"),
        ({"rows": ()}, "rows: give at least one"),
        ({"draws": 0}, "draws: must be at least 1, not 0"),
        ({"layers": (2, 4)}, "no MLP output in layer 4; layers are 0 to 3"),
        ({"rows": ("no-edit",)}, "'no-edit' takes no settings; these do: fine-tune"),
        ({"rows": ("memit@nowhere",)}, "no settings of 'memit' in 'nowhere'"),
        ({"rows": ("fine-tune", "nobody")}, "'nobody' takes no settings"),
        (
            {"rows": ("joint-fine-tune",)},
            "joint-fine-tune has no step size: none of config.policy.step_size, step_size",
        ),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_run(tmp_path, changes, words):
    args = replace(Args(tmp_path, SUITE, rows=("ultraedit",), layers=(3,), facts=0), **changes)
    with pytest.raises(SystemExit, match=words):
        main(args)
    assert list(tmp_path.iterdir()) == []


# ---- parts of it


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("fine-tune", "learning_rate", 0.003),
        ("ultraedit", "step_size", 1.8),
        ("untrained-p", "config.policy.step_size", 2.5),
        ("memit-seq", "value.clamp", 1.05),
        ("memit-seq@subject-last", "value.clamp", 0.75),  # the default: the file does not say it
    ],
)
def test_a_step_multiplies_the_rows_own_and_nothing_else(name, setting, value):
    row = Row.of(name)
    assert (row.setting, row.value) == (setting, value)
    own = row.make(row.settings)
    assert row.make(row.at_step(1.0)).constructor_arguments == own.constructor_arguments
    changed = row.make(row.at_step(0.5))
    for part in setting.split(".")[:1]:
        assert changed.constructor_arguments[part] != own.constructor_arguments[part]
    restored = Row(name, row.at_step(0.5), setting, value, {}).at_step(1.0)
    assert row.make(restored).constructor_arguments == own.constructor_arguments


def test_the_tokens_a_row_observes_are_its_settings_and_its_modules_are_not(tmp_path):
    environment = {"modules": ["layers.0.mlp.down_proj"], "observed_tokens": "all"}
    content = {"settings": {"step_size": 1.0}, "chosen": "", "environment": environment}
    (tmp_path / "ultraedit.json").write_text(json.dumps(content))
    row = Row.of(f"ultraedit@{tmp_path}")
    suite = find(SUITE).at(None, None, ("model.layers.2.mlp.down_proj",))
    arguments = suite.environment(row.make(row.settings).environment)
    assert arguments["modules"] == ("model.layers.2.mlp.down_proj",)
    assert arguments["observed_tokens"] == "all"


def test_layers_are_every_third_and_the_last():
    assert choose_layers((), dict.fromkeys(range(30), "")) == [2, 5, 8, 11, 14, 17, 20, 23, 26, 29]
    assert choose_layers((), dict.fromkeys(range(4), "")) == [0, 3]
    assert choose_layers((3, 1, 3), dict.fromkeys(range(4), "")) == [1, 3]


def test_one_pass_gives_the_covariance_of_each_layer(tmp_path):
    suite = find(SUITE).at(None, None)
    modules = place.modules_by_layer(suite)
    folders = {layer: tmp_path / f"{layer}" for layer in (1, 3)}
    texts = [f"{edit.prompt} {edit.target}" for edit in load_edits("atlas", "validation")[:30]]
    (tmp_path / "texts.txt").write_text("\n".join([*texts, "one more"]))
    args = Args(tmp_path, texts=30, text=str(tmp_path / "texts.txt"))
    place.take_statistics(suite, modules, folders, args)
    for layer in folders:
        lm = EditableLM(*load_model("atlas"), [modules[layer]])
        (kept,) = load_covariance(lm, folders[layer]).values()
        (expected,) = key_covariance(lm, texts, bos=True).values()
        torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-6)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    place.take_statistics(suite, modules, folders, args)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}


# ---- what trials show


ABOUT = {"suite": "small", "model": "tiny", "layers": 6}


def trial(row, layer, step, *values, error=None, prefix=(50.0, 40.0, 30.0)):
    return Trial(
        row, layer, step, ("m",), {}, scores(*(values or (None,) * 3)), scores(*prefix), about=ABOUT, error=error
    )


TRIALS = [
    trial("b", 4, 1.0, 90.0, 10.0, 50.0),
    trial("b", 4, 2.0, 60.0, 50.0, 40.0),
    trial("b", 1, 1.0, 5.0, 5.0, 100.0),
    trial("a", 1, 1.0, 80.0, 80.0, 80.0),
    trial("a", 4, 1.0, error="ValueError: not here"),
]


def test_the_best_step_is_that_of_the_harmonic_mean():
    best = best_steps(TRIALS)
    assert {row: {layer: t.step for layer, t in by_layer.items()} for row, by_layer in best.items()} == {
        "b": {1: 1.0, 4: 2.0},
        "a": {1: 1.0},
    }
    assert TRIALS[1].score == pytest.approx(3 / (1 / 60 + 1 / 50 + 1 / 40)) == harmonic_mean(TRIALS[1].teacher_forced)
    assert TRIALS[4].score == 0.0


def test_the_figure_has_a_panel_a_metric_and_a_line_a_row():
    shown = chart(TRIALS)
    assert [panel.title for panel in shown.panels] == ["Efficacy", "Generalization", "Specificity", "Harmonic mean"]
    lines = {series.agent: (series.x, series.y) for series in shown.panels[0].series}
    assert lines == {"b": ((1.0, 4.0), (5.0, 60.0)), "a": ((1.0,), (80.0,))}
    prefix = chart(TRIALS, protocol="generation_prefix")
    assert [series.y for series in prefix.panels[2].series] == [(30.0, 30.0), (30.0,)]
    with pytest.raises(ValueError, match="no trial that came to its end"):
        chart(TRIALS[-1:])


def traced(fact, clean, corrupted, restored):
    tokens = {"subject's last token": restored, "last token": [corrupted] * 6}
    return {
        "fact": fact,
        "clean": clean,
        "corrupted": corrupted,
        "restored": dict.fromkeys(("hidden state", "MLP", "attention"), tokens),
    }


def test_the_trace_beside_it_is_the_mean_over_facts(tmp_path):
    path = tmp_path / "trace.json"
    assert read_effects(path) is None
    facts = [traced("x", 0.8, 0.1, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), traced("y", 0.4, 0.3, [0.3] * 6)]
    path.write_text(json.dumps({"about": {"window": 3}, "examined": 9, "facts": facts}))
    effects = read_effects(path)
    assert (effects.facts, effects.clean, effects.corrupted) == (2, pytest.approx(0.6), pytest.approx(0.2))
    expected = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]
    assert effects.indirect["MLP"]["subject's last token"] == pytest.approx(expected)
    shown = chart(TRIALS, effects)
    assert [panel.title for panel in shown.panels[4:]] == ["Trace: subject's last token", "Trace: last token"]
    assert shown.panels[4].series[0].y == pytest.approx([100 * value for value in expected])
    assert shown.highlighted == ("b", "a", "hidden state", "MLP", "attention")
    figure = draw(shown)
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert {float(tick).is_integer() for tick in axis.get_xticks()} == {True}
        assert axis.get_xlim() == (-0.5, 5.5)
    path.write_text(json.dumps({"facts": [{"clean": 1}]}))
    with pytest.raises(ValueError, match=r"trace\.json is no trace"):
        read_effects(path)


def test_the_figure_of_the_documents_is_drawn_again_from_its_trials(tmp_path, capsys):
    assert "place.png" not in {figure.name for figure in figures.figures_in(tmp_path)}
    (tmp_path / "place.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in TRIALS))
    arguments = figures.Args(("place.png",), tmp_path)
    assert figures.main(arguments) == 0
    assert saved_digest(tmp_path / "place.png") == digest(chart(TRIALS))
    assert figures.main(replace(arguments, check=True)) == 0
    facts = [traced("x", 0.8, 0.1, [0.2] * 6)]
    (tmp_path / "trace.json").write_text(json.dumps({"about": {"window": 3}, "examined": 9, "facts": facts}))
    assert figures.main(replace(arguments, check=True)) == 1


def test_a_table_has_a_line_for_each_row_and_layer():
    lines = as_markdown(TRIALS).splitlines()[2:]
    assert lines == [
        "| b | 1 | 1 | 5.0 / 5.0 / 100.0 | 7.3 | 50.0 / 40.0 / 30.0 | 38.3 |",
        "| b | 4 | 2 | 60.0 / 50.0 / 40.0 | 48.6 | 50.0 / 40.0 / 30.0 | 38.3 |",
        "| a | 1 | 1 | 80.0 / 80.0 / 80.0 | 80.0 | 50.0 / 40.0 / 30.0 | 38.3 |",
        "| a | 4 | - | could not edit here | - | - | - |",
    ]


@pytest.mark.parametrize("line", ["{", "[]", '{"row": "a"}', json.dumps(asdict(TRIALS[0]) | {"more": 1})])
def test_a_line_that_is_no_trial_is_named(tmp_path, line):
    path = tmp_path / "place.jsonl"
    path.write_text(json.dumps(asdict(TRIALS[0])) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"place\.jsonl, line 2: "):
        read_trials(path)
    path.write_text(json.dumps(asdict(TRIALS[0])) + "\n")
    assert read_trials(path) == [TRIALS[0]]
