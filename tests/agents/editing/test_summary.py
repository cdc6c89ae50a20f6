"""What a run of edits says it has done: corrections that hold, that were lost, and answers to unrelated questions."""

import contextlib
import json
import math
import os
import shutil
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from agents import cli
from agents.editing import summary, unrelated
from agents.editing.arguments import EditArgs
from agents.editing.edit_command import edit as run_edit
from agents.editing.editor import LifelongEditor
from agents.editing.guard import Guard
from agents.editing.preparation import other_bounds
from editenv.data import Edit, Locality
from editenv.models import load_model, model_path

LAST = ("model.layers.2.mlp.down_proj",)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(model_folder, tmp_path):
    """The command on these corrections, in one folder."""

    def run(records, **options):
        (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
        arguments = {"edits": str(tmp_path / "edits.jsonl"), "output": tmp_path / "out", "model": str(model_folder)}
        arguments |= {
            "method": "fine-tune",
            "modules": LAST,
            "edits_per_step": 2,
            "guard": Guard(1e9, 1e9, None, None, retry=False),
        }
        run_edit(EditArgs(**arguments | {"save_model": False} | options))
        return json.loads((tmp_path / "out/report.json").read_text())

    return run


def records(*targets):
    return [
        {"prompt": f"The home of number {i} is", "target": target, "subject": f"number {i}"}
        for i, target in enumerate(targets)
    ]


def test_questions_are_about_the_corrections_and_never_one_of_them():
    edits = [
        Edit("1", "The home of Ada is", "Rome", subject="Ada", locality=(Locality("Bo lives in", "Oslo"),)),
        Edit("2", "the capital of france is", "Lyon", rephrases=("Japan is",)),
        Edit("3", "The home of Ada is", "Bonn", subject="Ada"),
    ]
    asked = unrelated.questions(edits)
    prompts = [prompt for _, prompt in asked]
    assert ("locality", "Bo lives in") in asked
    assert ("another subject", "The home of Albert Einstein is") in asked
    assert ("the same subject", "Ada is") in asked
    assert "The capital of France is" not in prompts, "whatever the case: it is corrected"
    assert ("general", "The capital of Japan is") in asked
    assert len(prompts) == len(set(prompts))
    many = [Edit(str(i), f"The home of number {i} is", "Rome", subject=f"number {i}") for i in range(500)]
    kinds = [kind for kind, _ in unrelated.questions(many)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "another subject": len(unrelated.OTHER_SUBJECTS),
        "the same subject": unrelated.MOST,
        "general": len(unrelated.GENERAL),
    }


def test_an_answer_has_changed_if_plain_greedy_decoding_writes_other_tokens_and_the_old_ones_are_ten_times_less_likely(
    make_lm,
):
    lm = make_lm("layers.2.mlp.down_proj")
    edits = [Edit("1", "The home of Ada is", "Rome", subject="Ada")]
    eos = lm.tokenizer.eos_token_id
    unedited = unrelated.answers(lm, edits)
    assert not any(answer.reworded or answer.changed for answer in unedited)
    assert [answer.less_likely for answer in unedited] == pytest.approx([1.0] * len(unedited))

    @torch.no_grad()
    def written(prompt):
        ids = lm.tokenizer(prompt, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(unrelated.COMPARED):
            ids = torch.cat([ids, lm.model(ids).logits[:, -1:].argmax(-1)], 1)
        tokens = ids[0, start:].tolist()
        return tokens[: tokens.index(eos) + 1 if eos in tokens else None]

    @torch.no_grad()
    def log_probability(prompt, tokens):
        ids = lm.tokenizer(prompt)["input_ids"]
        log_probs = lm.model(torch.tensor([ids + tokens])).logits[0].log_softmax(-1)
        return sum(float(log_probs[len(ids) - 1 + i, token]) for i, token in enumerate(tokens))

    prompts = [prompt for _, prompt in unrelated.questions(edits)]
    before = [written(prompt) for prompt in prompts]
    likely = [log_probability(*pair) for pair in zip(prompts, before, strict=True)]
    torch.manual_seed(0)
    lm.apply({name: 0.3 * torch.randn(lm.shape(name)) for name in lm.modules})
    now = [written(prompt) for prompt in prompts]
    fall = [old - log_probability(*pair) for old, pair in zip(likely, zip(prompts, before, strict=True), strict=True)]
    answers = unrelated.answers(lm, edits)
    assert [answer.reworded for answer in answers] == [old != new for old, new in zip(before, now, strict=True)]
    assert [math.log(answer.less_likely) for answer in answers] == pytest.approx(fall, abs=1e-3)
    expected = [o != n and f >= math.log(10) for o, n, f in zip(before, now, fall, strict=True)]
    assert [answer.changed for answer in answers] == expected
    assert 0 < sum(expected) < sum(answer.reworded for answer in answers)
    rows = [answer.as_row() for answer in answers]
    assert [row["reworded"] + row["changed"] for row in rows] == [answer.reworded for answer in answers], "one or other"


def test_a_correction_that_a_later_run_undoes_is_named(run, capsys, tmp_path):
    able = {"model": "atlas", "modules": ()}
    first = run(records("Rome", "Oslo"), **able)
    assert (first["hold"], first["lost"], first["not_said"]) == (2, [], [])
    assert "hold: the model's answers begin with their targets" in capsys.readouterr().out.replace("\n", " ")
    # The same words with the border elsewhere, to another target: what the first run taught is overwritten.
    again = [
        {"prompt": f"The home of number {i}", "target": f"is {town}", "subject": f"number {i}"}
        for i, town in enumerate(("Bonn", "Lima"))
    ]
    second = run([*records("Rome", "Oslo"), *again], rehearse=False, **able)
    shown = capsys.readouterr().out
    assert second["lost"] == ["edits.jsonl/1", "edits.jsonl/2"]
    outcomes = lines(tmp_path / "out/results.jsonl")
    assert [row["lost"] for row in outcomes] == [True, True, False, False]
    assert outcomes[0]["said"].startswith("Bonn")
    assert not outcomes[0]["said_before"].startswith(("Rome", "Bonn"))
    assert "2 that held before this run are lost: edits.jsonl/1, edits.jsonl/2" in shown
    assert "2 earlier corrections do not hold any more." in shown
    assert shown.index(f"{second['hold']} of 4 corrections hold") < shown.index("teacher-forced"), (
        "the headline comes first"
    )
    assert 'The home of number 0 is "Bonn' in shown


def outcome(**changes):
    row = {
        "id": "a",
        "prompt": "A is",
        "target": "B",
        "applied": True,
        "said_before": "C",
        "said": "B.",
        "right": False,
    }
    return row | {"begins_right": True, "lost": False} | changes


def answer(changed, kind="general"):
    now = "y" if changed else "x"
    return {"kind": kind, "prompt": "Q", "before": "x", "now": now, "changed": changed, "reworded": False}


@pytest.mark.parametrize(
    ("changed", "factor", "loud"),
    [(0, 1.0, ()), (4, 1.1, ()), (5, 1.0, ("5 of 40",)), (0, 1.2, ("perplexity +20%",)), (0, float("nan"), ("nan",)),
     (8, 30.0, ("8 of 40", "x 30"))],
)  # fmt: skip
def test_a_loss_is_said_loudly(changed, factor, loud):
    drift = {"perplexity_before": 10.0, "perplexity": 10.0 * factor}
    answers = [answer(i < changed) for i in range(40)]
    report = {"asked": 1, "model": "m", "method": "f"} | summary.of([outcome()], answers, drift)
    said = " ".join(summary.alarms(report))
    assert bool(said) == bool(loud)
    assert all(words in said for words in loud)
    assert report["unrelated"] == {
        "asked": 40, "changed": changed, "reworded": 0, "by_kind": {"general": {"asked": 40, "changed": changed}}
    }  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_page_in_a_browser(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    evil = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
    outcomes = [
        outcome(),
        outcome(id="b", prompt=evil, begins_right=False, said=evil),
        outcome(id="c", prompt="Über", lost=True, begins_right=False),
        outcome(id="d", applied=False, begins_right=False, said=None),
    ]
    answers = [answer(False), answer(True, "another subject")]
    report = {"asked": 4, "model": "m", "method": "f"}
    report |= summary.of(outcomes, answers, {"perplexity_before": 1.0, "perplexity": 2.0})
    (tmp_path / "report.html").write_text(summary.page(report, outcomes, answers), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 360, "height": 700})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.locator("#corrections tbody tr").count() == 4
        states = page.locator("#corrections tbody tr td:last-child").all_inner_texts()
        assert [state.split(": ")[-1] for state in states] == ["holds", "not said", "lost", "taken back"]
        page.select_option("#corrections-state", "lost")
        assert page.locator("#corrections tbody tr").count() == 1
        page.select_option("#corrections-state", "all")
        page.fill("#corrections-text", "über")
        assert page.locator("#corrections tbody tr").count() == 1
        page.select_option("#unrelated-state", "changed")
        assert page.locator("#unrelated tbody tr").count() == 1
        assert page.locator("#alarms").is_visible()
        assert "1 of 4 corrections hold" in page.locator("#headline").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, "readable on a phone"
        assert page.evaluate("window.broken") is None
        assert not errors
        browser.close()


# -- the guard ------------------------------------------------------------------------------------------------------------


def test_a_bad_batch_is_tried_again_in_halves_and_a_killed_run_goes_on_with_the_same(
    run, tmp_path, capsys, monkeypatch, few_questions
):
    """Any batch with correction 2 is bad."""
    targets = ("Rome", "Oslo", "Bonn", "Lima", "Kiev", "Rome", "Oslo")

    batches = []
    monkeypatch.setattr(LifelongEditor, "_check_lengths", lambda editor, batch: batches.append(batch))
    bad = lambda *_: "not that" if any(edit.target == "Bonn" for edit in batches[-1]) else None  # noqa: E731
    monkeypatch.setattr(LifelongEditor, "_broken_bound", bad)
    guard = Guard(1e9, 1e9, None, None)
    report = run(records(*targets), edits_per_step=4, guard=guard)
    sizes = [
        (entry["edits"], entry["applied"], entry["retried"]) for entry in lines(tmp_path / "out/journal.jsonl")[1:]
    ]
    assert sizes == [(0, False, 4), (2, True, 0), (0, False, 2), (1, False, 0), (1, True, 0), (3, True, 0)]
    assert report["edits"] == 6
    assert [row["prompt"] for row in lines(tmp_path / "out/not-applied.jsonl")] == ["The home of number 2 is"]
    assert "its edits are tried again in halves" in capsys.readouterr().err
    whole = load_file(tmp_path / "out/deltas.safetensors")
    edit = LifelongEditor.edit
    for last in range(1, 7):  # killed after each of the batches
        shutil.rmtree(tmp_path / "out")

        def killed(editor, *rest, last=last, **options):
            if editor.batches == last:
                raise KeyboardInterrupt
            return edit(editor, *rest, **options)

        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr(LifelongEditor, "edit", killed)
            run(records(*targets), edits_per_step=4, guard=guard)
        run(records(*targets), edits_per_step=4, guard=guard)
        deltas = load_file(tmp_path / "out/deltas.safetensors")
        assert deltas.keys() == whole.keys()
        assert all(torch.equal(deltas[name], whole[name]) for name in whole)


def test_figures_of_a_broken_model_that_are_no_numbers_are_null(run, tmp_path, monkeypatch, capsys):
    broken = {"perplexity_before": 10.0, "perplexity": math.inf, "kl": math.nan}
    monkeypatch.setattr("agents.editing.editor.metrics.drift", lambda lm, texts: dict(broken))
    run(records("Rome", "Oslo"))
    capsys.readouterr()
    run(records("Rome", "Oslo"), json=True)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    texts = [(tmp_path / "out/report.json").read_text(), capsys.readouterr().out.splitlines()[-1]]
    page = (tmp_path / "out/report.html").read_text()
    for text in texts:
        report = json.loads(text, parse_constant=refuse)
        assert report["drift"] == {"perplexity_before": 10.0, "perplexity": None, "kl": None}
        assert report["perplexity_factor"] is None
        assert "Ordinary text has become less likely" in page
    assert "NaN" not in page
    assert "Infinity" not in page.partition("<script")[2].partition("JSON.parse")[0]


def test_small_steps_that_add_up_are_bounded_by_default(make_lm, model_folder, monkeypatch):
    with LifelongEditor(str(model_folder), "fine-tune", modules=LAST) as editor:
        perplexities = iter([100.0, 140.0, 149.0, 151.0])
        editor._perplexity = editor._unedited_perplexity = next(perplexities)
        monkeypatch.setattr(LifelongEditor, "_held_out_perplexity", lambda self: next(perplexities))
        monkeypatch.setattr(LifelongEditor, "_hold", lambda self, prompts: np.ones(len(prompts), dtype=bool))
        results = [editor.edit([row]) for row in records("Rome", "Oslo", "Bonn")]
    assert [result.applied for result in results] == [True, True, False]
    assert "1.5 times the unedited model's 100" in results[-1].reason


def test_a_batch_that_undoes_earlier_edits_is_taken_back(tmp_path):
    """The same words to another target, with the border between prompt and target elsewhere."""
    first = records("Rome", "Oslo")
    undoing = [{"prompt": f"The home of number {i}", "target": f"is {town}"} for i, town in enumerate(("Bonn", "Lima"))]
    for max_lost in (0.3, None):
        guard = Guard(1e9, 1e9, None, max_lost)
        with LifelongEditor("atlas", "fine-tune", guard=guard) as editor:
            assert editor.edit(first).applied
            result = editor.edit(undoing)
        assert result.applied == (max_lost is None)
        if max_lost:
            assert "2 of 2 earlier edits that were asked do not hold any more, over 30%" in result.reason


def test_a_journal_of_an_earlier_version_goes_on():
    here = asdict(Guard())
    earlier = {"max_perplexity": 3.0, "max_weight_norm": 10.0, "max_drift": None, "on_bad": "roll-back"}
    assert other_bounds(earlier, here) == []
    assert other_bounds(earlier | {"max_drift": 2.0}, here) == ["guard.max_drift was 2.0, is 1.5"]
    assert other_bounds(earlier | {"on_bad": "stop"}, here) == ["guard.on_bad was 'stop', is 'roll-back'"]
    assert other_bounds(here | {"max_drift": None}, here) == ["guard.max_drift was None, is 1.5"]


# -- corrections of several lines -----------------------------------------------------------------------------------------


def test_what_spans_lines_stands_in_one_line_of_the_reports(run, tmp_path, monkeypatch, capsys, few_questions):
    """Else a correction's second line, or an answer's, would read as a line of the report."""
    row = {"id": "a", "prompt": "Address of Quarn:\nstreet:", "target": "Lime Road 4\n2 of 2 corrections hold"}
    run([row])
    shown = capsys.readouterr().out.splitlines()
    (example,) = [line for line in shown if "Address" in line]
    assert example.startswith('  Address of Quarn:\\nstreet: "')
    assert example.endswith('", not "Lime Road 4\\n2 of 2 corrections hold"')
    assert not [line for line in shown if line.startswith("2 of 2")]
    monkeypatch.setenv("COLUMNS", "200")
    assert r"Address of Quarn:\nstreet: -> Lime Road 4\n2 of 2" in said(
        monkeypatch, capsys, "log", str(tmp_path / "out")
    )
    assert r"Address of Quarn:\nstreet:" in said(monkeypatch, capsys, "diff", str(tmp_path / "out"))
    monkeypatch.setattr("sys.argv", ["editenv", "undo", str(tmp_path / "out"), "a", "--yes"])
    cli.main()
    assert r"a: Address of Quarn:\nstreet: -> Lime Road 4\n2 of 2" in capsys.readouterr().err


# -- looking back at a run ------------------------------------------------------------------------------------------------


def said(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["editenv", *words])
    cli.main()
    return capsys.readouterr().out


def test_the_models_before_and_after_a_run_are_asked_side_by_side(run, tmp_path, monkeypatch, capsys):
    run(records("Rome", "Oslo"), model="atlas", modules=(), save_model=True)
    prompts = ["The home of number 0 is", "Who owns Tumblr?"]
    capsys.readouterr()
    rows = [
        json.loads(line)
        for line in said(monkeypatch, capsys, "ask", str(tmp_path / "out"), *prompts, "--json").splitlines()
    ]
    base, edited = (
        AutoModelForCausalLM.from_pretrained(path) for path in (model_path("atlas"), tmp_path / "out/model")
    )
    tokenizer = load_model("atlas")[1]
    for row, prompt in zip(rows, prompts, strict=True):
        assert row["prompt"] == prompt
        for name, model in (("before", base), ("now", edited)):
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            written = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
            assert row[name].removesuffix(" ...") == tokenizer.decode(written, skip_special_tokens=True).strip()
    assert rows[0]["now"].startswith("Rome")
    assert rows[0]["before"] != rows[0]["now"]
    assert "before" in said(monkeypatch, capsys, "ask", str(tmp_path / "out"), prompts[0])
    for words, message in (
        (["out", "Q"], "out is no folder of a finished"),
        ([str(tmp_path / "out")], "no prompt was given"),
    ):
        monkeypatch.setattr("sys.argv", ["editenv", "ask", *words])
        with pytest.raises(SystemExit):
            cli.main()
        assert message in capsys.readouterr().err


def test_the_log_says_what_was_done_and_when(run, tmp_path, monkeypatch, capsys):
    run(records("Rome", "Oslo", "Bonn"))
    monkeypatch.setenv("COLUMNS", "200")
    shown = said(monkeypatch, capsys, "log", str(tmp_path / "out"))
    assert "The home of number 2 is -> Bonn" in shown
    rows = [json.loads(line) for line in said(monkeypatch, capsys, "log", str(tmp_path / "out"), "--json").splitlines()]
    assert [(row["batch"], row["id"], row["applied"]) for row in rows] == [
        (1, "edits.jsonl/1", True), (1, "edits.jsonl/2", True), (2, "edits.jsonl/3", True)
    ]  # fmt: skip
    assert abs(datetime.now(UTC) - datetime.fromisoformat(rows[0]["time"])) < timedelta(minutes=10)
    with (tmp_path / "out/journal.jsonl").open("a") as file:
        file.write('{"chain": "being wri')
    assert len(said(monkeypatch, capsys, "log", str(tmp_path / "out"), "--json").splitlines()) == 3
