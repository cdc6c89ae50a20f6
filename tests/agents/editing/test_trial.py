"""Which method a long file is made with: a few corrections are tried first, once."""

import json
from dataclasses import replace

import pytest

from agents.editing import edit_command, trial
from agents.editing.trial import Trial, preferred

UNBOUNDED = ("--guard.max-perplexity", "inf", "--guard.max-weight-norm", "inf", "--guard.max-drift", "None")


def rows(count):
    return [{"prompt": f"The home of number {i} is", "target": "Rome"} for i in range(count)]


@pytest.fixture
def edit(monkeypatch, command_line, model_folder, tmp_path):
    """The command on so many corrections; two methods on one correction each are a tenth of twenty."""
    monkeypatch.setattr(trial, "CORRECTIONS", 1)
    monkeypatch.setattr("agents.editing.unrelated.GENERAL", ("The capital of France is", "Water is made of"))

    def run(count, *words, expected=0):
        file = tmp_path / "edits.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
        words = ("--model", model_folder, "--edits", file, "--output", tmp_path / "out", "--no-save-model", *words)
        _, said, code = command_line("edit", *words, *UNBOUNDED)
        assert code == expected, said
        return said, json.loads((tmp_path / "out/report.json").read_text()) if not code else None

    return run


@pytest.fixture
def no_trial(monkeypatch):
    """Trials are an error from now on."""

    def fail(*_, **__):
        raise AssertionError("tried again")

    return lambda: monkeypatch.setattr(trial, "try_method", fail)


def method_of(folder):
    return json.loads((folder / "journal.jsonl").read_text().splitlines()[0])["method"]


def test_of_many_corrections_a_few_are_tried_and_the_report_says_what_came_of_it(
    edit, command_line, model_folder, tmp_path, no_trial
):
    said, report = edit(20)
    assert "a trial first: fine-tune-replay and ultraedit on 1 of 20 corrections" in said
    assert "as much work as 2 corrections of the run (10%)" in said
    assert "--method NAME goes without" in said
    words = ("--methods", "fine-tune-replay", "ultraedit", "--corrections", "1", "--json")
    shown, _, _ = command_line("advise", "--model", model_folder, "--edits", tmp_path / "edits.jsonl", *words)
    advised = [json.loads(line) for line in shown.splitlines()]
    for row in (*advised, *report["trial"]["trials"]):
        del row["prepared"], row["seconds"]
    assert report["trial"]["trials"] == advised
    assert [row["method"] for row in advised] == ["fine-tune-replay", "ultraedit"]
    assert not all(row["refused"] for row in advised)
    chosen = report["method"]
    assert chosen == method_of(tmp_path / "out")
    assert report["trial"]["reason"] in said
    assert report["trial"]["reason"] in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    no_trial()
    _, report = edit(21)
    assert report["method"] == chosen
    assert report["trial"]["of"] == 20, "what chose it is still told"


def test_fewer_corrections_have_none_and_a_named_method_has_none(edit, no_trial, tmp_path):
    no_trial()
    said, report = edit(19)
    assert "method: fine-tune-replay: 19 of 19 corrections have no subject" in said
    assert "trial" not in report
    _, report = edit(20, "--method", "fine-tune", "--output", tmp_path / "named")
    assert not (tmp_path / "named/trial.json").exists()


def test_one_that_is_clearly_better_is_taken_and_stays(edit, monkeypatch, tmp_path, no_trial):
    tried = []

    def made_up(choice, edits, model, **options):
        tried.append(choice.method)
        return Trial(choice.method, (), 1, int(choice.method == "ultraedit"), 40, 0, 1.0, 1.0, 1.0)

    monkeypatch.setattr(trial, "try_method", made_up)
    with monkeypatch.context() as patched:
        patched.setattr(edit_command, "open_editor", interrupted)
        edit(20, expected=130)
    assert not (tmp_path / "out/journal.jsonl").exists()
    assert tried == ["fine-tune-replay", "ultraedit"]
    no_trial()
    said, report = edit(20)
    assert "method: ultraedit: of 2 methods tried on 1 corrections, fine-tune-replay says 0 of 1" in said
    assert report["method"] == method_of(tmp_path / "out") == "ultraedit"


def interrupted(*_):
    raise KeyboardInterrupt


def test_what_was_tried_with_other_options_is_tried_again(edit, monkeypatch, tmp_path):
    tried = []

    def made_up(choice, edits, model, **options):
        tried.append(options["seed"])
        return Trial(choice.method, (), 1, 1, 40, 0, 1.0, 1.0, 1.0)

    monkeypatch.setattr(trial, "try_method", made_up)
    monkeypatch.setattr(edit_command, "open_editor", interrupted)
    for seed in ("1", "1", "2"):
        edit(20, "--seed", seed, expected=130)
    assert tried == [1, 1, 2, 2]


RULE = Trial("rule", (), 8, 6, 40, 2, 1.0, 1.0, 5.0)


@pytest.mark.parametrize(
    ("first", "other", "taken"),
    [
        (RULE, replace(RULE, method="other", said=8), "other"),  # a quarter of eight more
        (RULE, replace(RULE, method="other", said=7, changed=0, seconds=0.1), "rule"),
        (RULE, replace(RULE, method="other", said=8, changed=5), "rule"),  # over a tenth of the unrelated answers
        (RULE, replace(RULE, method="other", said=8, perplexity=1.2), "rule"),
        (replace(RULE, changed=5), replace(RULE, method="other"), "other"),
        (replace(RULE, changed=5), replace(RULE, method="other", said=5), "rule"),
        (replace(RULE, perplexity=float("nan")), replace(RULE, method="other"), "other"),
        (Trial("rule", (), 8, refused="no"), replace(RULE, method="other", said=0), "other"),
        (RULE, Trial("other", (), 8, refused="no"), "rule"),
        (Trial("rule", (), 8, refused="no"), Trial("other", (), 8, refused="no"), "rule"),
    ],
)
def test_the_rules_method_stays_unless_another_is_clearly_better(first, other, taken):
    assert preferred([first, other]).method == taken


def test_of_several_that_are_clearly_better_the_best_is_taken():
    others = [replace(RULE, method=name, said=8, changed=changed) for name, changed in (("a", 3), ("b", 1), ("c", 2))]
    assert preferred([RULE, *others]).method == "b"


def test_a_method_that_runs_out_of_memory_is_one_that_made_none(model_folder, monkeypatch, edits):
    def too_large(*_, **__):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(trial, "LifelongEditor", too_large)
    result = trial.try_method(trial.Choice("fine-tune", (), ""), edits[:2], model_folder)
    assert (result.refused, result.said, result.tried) == ("CUDA out of memory", 0, 2)
