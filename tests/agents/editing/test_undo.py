"""Corrections are taken back out of a run as if they had never been in the file, whenever the process is killed."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import cli
from agents.editing import corrections
from agents.editing.arguments import EditArgs, UndoArgs, read_options, write_options
from agents.editing.changes import compare
from agents.editing.edit_command import edit as run_edit
from agents.editing.editor import LifelongEditor
from agents.editing.guard import Guard
from agents.editing.history import log
from agents.editing.names import Names
from agents.editing.run import Run, key_of_edit, read_lines, steps_of
from agents.editing.undo_command import undo as run_undo
from agents.editing.undoing import duration
from editenv.data import Edit
from editenv.data.chat import IN_CHAT
from editenv.data.edits import as_json
from editenv.delta_files import read_delta_file

pytestmark = pytest.mark.usefixtures("few_questions")

LAST = ("model.layers.2.mlp.down_proj",)
TOWNS = ("Rome", "Oslo", "Bonn", "Lima", "Kiev", "Bern", "Quito")
UNBOUNDED = Guard(1e9, 1e9, None, None, retry=False)

BY_ITSELF = """
import zlib
import torch
from agents.base import Agent

class ByItself(Agent):
    '''A delta that the batch's targets alone decide.'''
    independent_batches = True
    def begin(self, env):
        self.env = env
    def act(self, observation, info):
        seed = zlib.crc32(" ".join(edit.target for edit in self.env.batch).encode())
        return {"model.layers.2.mlp.down_proj": 0.01 * torch.randn(64, 32, generator=torch.Generator().manual_seed(seed))}
"""


def records(*targets):
    return [{"prompt": f"The home of number {i} is", "target": town} for i, town in enumerate(targets)]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def edit_options(model_folder, folder, out, rows, **options):
    file = folder / "edits.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"method": "fine-tune", "modules": LAST, "edits_per_step": 2, "guard": UNBOUNDED} | options
    return EditArgs(edits=str(file), output=folder / out, **({"model": model_folder} | options))


@pytest.fixture
def edit(model_folder, tmp_path):
    """The command in a folder of its own, on these rows; gives its report."""

    def run(rows, out="out", **options):
        run_edit(edit_options(model_folder, tmp_path, out, rows, **options))
        return json.loads((tmp_path / out / "report.json").read_text())

    return run


def undo(out, *ids, yes=True):
    run_undo(UndoArgs(out, ids, yes=yes))
    return json.loads((out / "report.json").read_text())


def same_tensors(one, other):
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_models(one, other):
    return same_tensors(one / "model/model.safetensors", other / "model/model.safetensors") and same_tensors(
        one / "deltas.safetensors", other / "deltas.safetensors"
    )


@pytest.mark.parametrize(("method", "which"), [("fine-tune", 1), ("fine-tune-replay", 3), ("ultraedit", 7)])
def test_a_run_without_a_correction_is_the_run_that_never_had_it(edit, tmp_path, method, which):
    """To the bit, with what the method keeps of earlier batches: in the first batch, in the middle, and at the end."""
    rows = records(*TOWNS)
    edit(rows, method=method)
    report = undo(tmp_path / "out", str(which))
    plain = edit([row for i, row in enumerate(rows, start=1) if i != which], "plain", method=method)
    assert same_models(tmp_path / "out", tmp_path / "plain")
    assert report["edits"] == plain["edits"] == 6
    outcomes = lines(tmp_path / "out/results.jsonl")
    assert [row["prompt"] for row in outcomes] == [row["prompt"] for i, row in enumerate(rows, 1) if i != which]


def test_the_report_says_what_the_model_says_to_it_now(edit, model_folder, tmp_path, capsys):
    edit(records(*TOWNS[:4]))
    report = undo(tmp_path / "out", "edits.jsonl/2", "4")
    assert [row["id"] for row in report["undone"]] == ["edits.jsonl/2", "edits.jsonl/4"]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for name, folder in (("said_before", model_folder), ("said", tmp_path / "out/model")):
        model = AutoModelForCausalLM.from_pretrained(folder)
        for row in report["undone"]:
            ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
            written = model.generate(ids, max_new_tokens=corrections.LONGEST_SAID, do_sample=False)[0, ids.shape[1] :]
            assert row[name].removesuffix(" ...") == tokenizer.decode(written, skip_special_tokens=True).strip()
    assert "2 corrections are undone" in capsys.readouterr().out
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    (data,) = (json.loads(part.split("</script>")[0]) for part in page.split('type="application/json">')[1:])
    assert [bool(row.get("undone")) for row in data["corrections"]] == [False, False, True, True]


def test_all_corrections_can_be_undone(edit, model_folder, tmp_path):
    edit(records("Rome", "Oslo"))
    report = undo(tmp_path / "out", "1", "2")
    assert (report["edits"], report["asked"], len(report["undone"])) == (0, 0, 2)
    base, left = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (model_folder, tmp_path / "out/model")
    )
    assert all(torch.equal(base[name], left[name]) for name in base)
    assert all(row["said"] == row["said_before"] for row in report["undone"])


def test_a_batch_of_an_independent_method_goes_and_the_others_stay(edit, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(BY_ITSELF)
    edit(records(*TOWNS[:6]), method=f"{tmp_path / 'own.py'}:ByItself")
    actions, _ = read_delta_file(tmp_path / "out/deltas.safetensors")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/batches").iterdir()}
    capsys.readouterr()
    undo(tmp_path / "out", "3", "4", yes=False)
    assert "2 corrections will be undone; no other is made again" in capsys.readouterr().err
    left, _ = read_delta_file(tmp_path / "out/deltas.safetensors")
    assert len(left) == 2
    assert all(
        torch.equal(one[LAST[0]], other[LAST[0]]) for one, other in zip(left, (actions[0], actions[2]), strict=True)
    )
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/batches").iterdir()}
    assert now == {name: times[name] for name in ("000001.safetensors", "000003.safetensors")}
    report = undo(tmp_path / "out", "1", yes=True)  # the other of its batch is made again, by itself
    assert report["edits"] == 3
    assert (tmp_path / "out/batches/000003.safetensors").stat().st_mtime_ns == times["000003.safetensors"]
    edited = [entry["ids"] for entry in Run.of(lines(tmp_path / "out/journal.jsonl")[1:]).entries]
    assert edited == [["edits.jsonl/5", "edits.jsonl/6"], ["edits.jsonl/2"]]
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    log(tmp_path / "out")
    shown = capsys.readouterr().out
    assert "undone, with batch 1; what else was in there is made again" in shown
    assert shown.count("undone since") == 2
    log(tmp_path / "out", as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["id"][-1], row["batch"]) for row in rows if not row["undone"]] == [("5", 3), ("6", 3), ("2", 4)]


@pytest.mark.parametrize("method", ["fine-tune", "own.py:ByItself", "fine-tune@./mine"])
def test_it_is_the_same_from_any_folder(edit, model_folder, tmp_path, monkeypatch, method):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/fine-tune.json").write_text('{"settings": {"steps": 1}}')
    (tmp_path / "own.py").write_text(BY_ITSELF)
    (tmp_path / "t.txt").write_text("A sentence.\n")
    (tmp_path / "base").symlink_to(model_folder)
    (tmp_path / "s.json").write_text('{"steps": 1}')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = Path("s.json") if method == "fine-tune" else None
    edit(records(*TOWNS[:3]), method=method, model="base", text="t.txt", settings=settings)
    monkeypatch.chdir("elsewhere")
    assert undo(tmp_path / "out", "1")["edits"] == 2
    card = (tmp_path / "out/model/README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    assert str(Path(model_folder).parent) not in card


def test_names_that_are_no_paths_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("atlas", "edits.csv", "self-written"):
        (tmp_path / name).mkdir()
    given = EditArgs("counterfact:edits.csv", Path("out"), text="self-written", training="atlas", push_to_hub="me/mine")
    (tmp_path / "out").mkdir()
    write_options(given, "edits.csv")
    options, _ = read_options(tmp_path / "out")
    assert options.edits == f"counterfact:{tmp_path / 'edits.csv'}"
    assert (options.model, options.training, options.text, options.method) == ("atlas", "atlas", "self-written", "auto")
    given = EditArgs("someone/set", Path("out"), "someone/model", text="someone/text", training="zsre:someone/set")
    write_options(given, "set")
    options, _ = read_options(tmp_path / "out")
    assert (options.edits, options.model, options.text, options.training) == (
        "someone/set",
        "someone/model",
        "someone/text",
        "zsre:someone/set",
    )


def test_the_cost_is_said_before_anything_is_done(edit, tmp_path, monkeypatch, capsys):
    edit(records(*TOWNS))
    path = tmp_path / "out/journal.jsonl"
    before = path.read_bytes()
    monkeypatch.setattr(LifelongEditor, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=r"1 correction will be undone, and 4 others .* about 1 s: fine-tune .* --yes"):
        undo(tmp_path / "out", "3", yes=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n", raising=False)
    with pytest.raises(ValueError, match="nothing was done"):
        undo(tmp_path / "out", "3", yes=False)
    assert "Do it? [y/N]" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_ids_are_those_of_the_last_report_and_what_they_may_mean_is_said(edit, tmp_path, monkeypatch, capsys):
    rows = [{"id": "case-7"} | row for row in records("Rome")] + records(*TOWNS)[1:4]
    edit(rows)
    for ids, words in (
        (["nobody"], "has no correction 'nobody'"),
        (["case-7", "edits.jsonl/9"], "has no correction 'edits.jsonl/9'"),
    ):
        with pytest.raises(ValueError, match=words):
            undo(tmp_path / "out", *ids)
    # Without its second row the file calls the third one 2.
    edit([rows[0], *rows[2:]], changed="undo", yes=True)
    report = undo(tmp_path / "out", "2")
    assert [row["target"] for row in report["undone"]] == ["Oslo", "Bonn"]
    report = undo(tmp_path / "out", "case-7")
    assert [row["target"] for row in report["undone"]] == ["Oslo", "Bonn", "Rome"]
    again = undo(tmp_path / "out", "case-7")
    assert again["edits"] == report["edits"] == 1
    monkeypatch.setattr("sys.argv", ["editenv", "undo", str(tmp_path / "nowhere"), "1"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "command.json is not there" in capsys.readouterr().err


@pytest.fixture
def shifted(tmp_path):
    """A run on A and B, and then on a file with C before them: the journal has both A and C as its first row."""
    journal = [{"journal": 1}, named_line(1, {"f/1": "A", "f/2": "B"}), named_line(2, {"f/1": "C"})]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in journal))
    report_as(tmp_path, {"f/1": "C", "f/2": "A", "f/3": "B"})
    return tmp_path


def named_line(number, towns):
    line = batch_line(number, *towns.values())
    content = [content | {"id": id} for id, content in zip(towns, line["content"], strict=True)]
    return line | {"ids": list(towns), "content": content}


def report_as(folder, towns):
    rows = [{"id": id, "prompt": f"{town}?", "target": town} for id, town in towns.items()]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_id_that_may_mean_two_corrections_is_asked_about(shifted):
    names = Names.of(read_lines(shifted / "journal.jsonl"), shifted)
    for id in ("f/1", "1"):
        with pytest.raises(
            ValueError, match=r"may be any of f/1@1 \(A\? -> A\), f/1@2 \(C\? -> C\): write one of these"
        ):
            names.forms_of(id)
    with pytest.raises(ValueError, match=r"'2' may be any of f/1@1 \(.*\), f/3 \(B\? -> B\)"):
        names.forms_of("2")
    for id, town in (("f/1@1", "A"), ("1@2", "C"), ("f/3", "B"), ("3", "B"), ("f/2@1", "B"), ("2@1", "B")):
        assert [names.edits[key].target for key in names.forms_of(id)] == [town]


def test_what_is_undone_does_not_make_an_id_mean_two(shifted):
    with (shifted / "journal.jsonl").open("a") as file:
        line = undo_line([2], "C")
        file.write(json.dumps(line | {"ids": ["f/1"], "content": [line["content"][0] | {"id": "f/1"}]}) + "\n")
    report_as(shifted, {"f/1": "A", "f/2": "B"})
    names = Names.of(read_lines(shifted / "journal.jsonl"), shifted)
    for id, town in (("f/1", "A"), ("2", "B"), ("f/1@2", "C")):
        assert [names.edits[key].target for key in names.forms_of(id)] == [town]


def test_both_forms_of_a_correction_have_one_name(tmp_path):
    def in_both(town):
        chat = as_json(Edit(f"f/1{IN_CHAT}", f"<{town}?>", town, question_span=(1, 1 + len(f"{town}?"))))
        return [as_json(Edit("f/1", f"{town}?", town)), chat]

    journal = [
        batch_line(number, town) | {"ids": ["f/1", f"f/1{IN_CHAT}"], "content": in_both(town)}
        for number, town in enumerate("AB", start=1)
    ]
    names = Names.of(journal, tmp_path)
    for id, town in (("f/1@1", "A"), ("f/1@2", "B"), (f"f/1@2{IN_CHAT}", "B")):
        assert [names.edits[key].target for key in names.forms_of(id)] == [town, town]
    with pytest.raises(ValueError, match=r"any of f/1@1 \(.*\), f/1@2 \("):
        names.forms_of("1")


def test_the_log_has_the_names_that_undo_takes(shifted, capsys):
    log(shifted, as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["id"], row["target"]) for row in rows] == [("f/1@1", "A"), ("f/3", "B"), ("f/1@2", "C")]


def test_a_correction_whose_batch_was_bad_is_not_in_the_model(edit, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(LifelongEditor, "_broken_bound", lambda editor, *_: "not that" if editor.batches == 1 else None)
        edit(records(*TOWNS[:5]))
    with pytest.raises(ValueError, match=r"edits\.jsonl/3 is not in the model: its batch was taken back \(not that\)"):
        undo(tmp_path / "out", "3")
    edit(records(*TOWNS[:5])[:3] + records(*TOWNS[:5])[4:])  # nothing is to be undone for it
    assert len(lines(tmp_path / "out/journal.jsonl")) == 4


def test_a_stopped_run_forgets_a_correction_and_goes_on(edit, tmp_path, monkeypatch):
    rows = records(*TOWNS)
    make = LifelongEditor.edit

    def stops(editor, *rest, **options):
        if editor.batches == 2:
            raise KeyboardInterrupt
        return make(editor, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(LifelongEditor, "edit", stops)
        with pytest.raises(KeyboardInterrupt):
            edit(rows)
    undo(tmp_path / "out", "2")
    edit(rows)  # the file has the row still: it stays undone
    edit([row for row in rows if row["target"] != "Oslo"], "plain")
    kept = [
        content for entry in Run.of(lines(tmp_path / "out/journal.jsonl")[1:]).entries for content in entry["content"]
    ]
    assert [content["target"] for content in kept] == [row["target"] for row in rows if row["target"] != "Oslo"]
    assert len(lines(tmp_path / "out/results.jsonl")) == 6


def test_what_was_undone_stays_so_until_it_is_made_again(edit, tmp_path, capsys):
    rows = records(*TOWNS[:4])
    edit(rows)
    undo(tmp_path / "out", "2")
    report = edit([*rows, {"prompt": "The home of number 9 is", "target": "Riga"}])
    assert (report["asked"], report["edits"], len(report["undone"])) == (4, 4, 1)
    assert "1 corrections of the file were undone and stay so" in capsys.readouterr().err
    report = edit([*rows, {"prompt": "The home of number 9 is", "target": "Riga"}], undone="make")
    assert (report["asked"], report["edits"], "undone" in report) == (5, 5, False)


# -- a file whose rows were removed or changed ----------------------------------------------------------------------------


def test_a_file_that_was_changed_is_followed_if_it_is_told_to(edit, tmp_path):
    rows = records(*TOWNS[:6])
    edit(rows)
    now = [rows[0], rows[1], rows[3], {**rows[4], "target": "Sofia"}, rows[5], records(*TOWNS)[6]]
    before = (tmp_path / "out/journal.jsonl").read_bytes()
    with pytest.raises(ValueError, match="is not what the run in") as refused:
        edit(now)
    said = str(refused.value).splitlines()
    assert said[1:4] == [
        "  removed edits.jsonl/3: The home of number 2 is -> Bonn",
        "  changed edits.jsonl/5: The home of number 4 is -> Kiev; now The home of number 4 is -> Sofia",
        "  added: 1",
    ]
    assert "2 corrections will be undone, and 2 others" in said[4]
    with pytest.raises(ValueError, match="--yes"):
        edit(now, changed="undo")
    assert (tmp_path / "out/journal.jsonl").read_bytes() == before
    edit(now, changed="undo", yes=True)
    edit(now, "plain")
    assert same_models(tmp_path / "out", tmp_path / "plain")
    outcomes = [lines(tmp_path / out / "results.jsonl") for out in ("out", "plain")]
    assert outcomes[0] == outcomes[1]


def test_a_file_that_is_changed_back_is_followed_back(edit, tmp_path, capsys):
    options = {"method": "no-edit", "changed": "undo", "yes": True, "save_model": False}
    for town in ("Rome", "Oslo", "Rome"):
        report = edit(records(town), **options)
        assert (report["asked"], report["edits"]) == (1, 1)
        assert [row["target"] for row in lines(tmp_path / "out/results.jsonl")] == [town]
    assert "stay so" not in capsys.readouterr().err


def test_only_what_followed_a_file_is_made_again():
    """A journal that says nothing of why, as earlier versions wrote it, speaks of what a person has undone."""
    edits = [Edit("f/1", "A?", "A")]
    by_hand, by_file = undo_line([1], "A"), undo_line([2], "A") | {"by_file": True}
    for journal, left_out in (
        ([batch_line(1, "A"), by_hand], True),
        ([batch_line(2, "A"), by_file], False),
        ([batch_line(1, "A"), by_hand, batch_line(2, "A"), by_file], False),
        ([batch_line(2, "A"), by_file, batch_line(1, "A"), by_hand], True),
    ):
        changes = compare(Run.of(journal), edits, "f")
        assert (changes.left_out.tolist(), changes.to_make.tolist()) == ([left_out], [not left_out])


def test_rows_in_another_order_are_the_same_run(edit, tmp_path, capsys):
    rows = records(*TOWNS[:4])
    edit(rows)
    report = edit([rows[3], *rows[:3]])
    assert report["edits"] == 4
    assert len(lines(tmp_path / "out/journal.jsonl")) == 3


def test_what_differs_is_named_by_id_or_prompt():
    def edited(id, prompt, target, **more):
        return Edit(id, prompt, target, **more)

    made = [edited("f/1", "A is", "x"), edited("own", "B is", "y"), edited("f/3", "C is", "z", rephrases=("C?",))]
    run = Run(made={key_of_edit(edit): edit for edit in made})
    now = [edited("own", "B now is", "y"), edited("f/2", "C is", "z")]
    changes = compare(run, now, "f")
    assert changes.removed == [made[0]]
    assert changes.changed == [(made[1], now[0]), (made[2], now[1])]
    assert "now with another rephrases" in changes.in_words()[2]
    assert changes.added == 0


# -- killed ---------------------------------------------------------------------------------------------------------------


def undo_in_a_process(out, ids):
    torch.set_num_threads(1)
    run_undo(UndoArgs(Path(out), tuple(ids), yes=True))


def test_an_undoing_that_is_killed_leaves_the_old_run_or_one_that_the_same_command_finishes(
    edit, model_folder, tmp_path
):
    rows = records(*(f"{town} {i}" for i, town in enumerate(TOWNS * 2)))
    options = {"method": "fine-tune-replay", "save_model": False}
    edit(rows, **options)
    out = tmp_path / "out"
    old = (out / "journal.jsonl").read_bytes()
    edit([row for i, row in enumerate(rows, start=1) if i != 4], "plain", **options)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "agents.editing.editor", "transformers.models.llama.modeling_llama"])
    draws, at = random.Random(0), []
    for kill in range(3):
        process = context.Process(target=undo_in_a_process, args=(str(out), ["4"]))
        size = (out / "journal.jsonl").stat().st_size
        process.start()
        limit = time.monotonic() + 60
        while (
            kill and process.is_alive() and (out / "journal.jsonl").stat().st_size == size and time.monotonic() < limit
        ):
            time.sleep(0.001)
        time.sleep(draws.random() * (0.03 if kill else 0.1))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        now = (out / "journal.jsonl").read_bytes()
        assert now.startswith(old), "nothing that was written is changed"
        whole = now.rpartition(b"\n")[0].decode().split("\n")
        at.append(len(whole))
        run = Run.of([json.loads(line) for line in whole[1:]])
        assert len(run.made) + len(run.pending) + len(run.undone) == len(rows), "no correction is forgotten"
    undo(out, "4")
    assert len(set(at)) >= 2  # in the middle
    assert same_tensors(out / "deltas.safetensors", tmp_path / "plain/deltas.safetensors")
    assert not Run.of(lines(out / "journal.jsonl")[1:]).pending


# -- the journal's own view -----------------------------------------------------------------------------------------------


def batch_line(number, *targets, applied=True, retried=0):
    content = [as_json(Edit(f"f/{town}", f"{town}?", town)) for town in targets]
    ids = [f"f/{town}" for town in targets]
    state = {"applied": applied, "reason": None if applied else "bad", "efficacy": None, "seconds": 1.0}
    return {"batch": number, "edits": len(targets), "retried": retried, "ids": ids, "content": content, **state}


def undo_line(batches, *targets):
    return {"undone": batches, "time": "t", "content": [as_json(Edit("", f"{town}?", town)) for town in targets]}


def fates(lines):
    run = Run.of(lines)
    return {name: [edit.target for edit in getattr(run, name).values()] for name in ("made", "pending")} | {
        name: [edit.target for edit, _ in getattr(run, name).values()] for name in ("refused", "undone")
    }


def test_a_corrections_fate_is_the_last_that_befell_it():
    journal = [batch_line(1, "A", "B"), batch_line(2, "C", "D", applied=False), batch_line(3, "E")]
    assert fates(journal) == {"made": ["A", "B", "E"], "pending": [], "refused": ["C", "D"], "undone": []}
    journal.append(undo_line([1, 2, 3], "B"))
    assert fates(journal) == {"made": [], "pending": ["A", "C", "D", "E"], "refused": [], "undone": ["B"]}
    journal += [batch_line(4, "A", "C"), undo_line([], "D")]
    assert fates(journal) == {"made": ["A", "C"], "pending": ["E"], "refused": [], "undone": ["B", "D"]}
    journal += [batch_line(5, "E", "B"), undo_line([5], "E")]
    assert fates(journal) == {"made": ["A", "C"], "pending": ["B"], "refused": [], "undone": ["D", "E"]}


def test_a_batch_that_was_tried_again_in_halves_goes_as_a_whole():
    journal = [
        batch_line(1, "A"),
        batch_line(2, applied=False, retried=3),
        batch_line(3, "B"),
        batch_line(4, "C", "D"),
        batch_line(5, "E"),
    ]
    assert [[entry["batch"] for entry in step] for step in steps_of(journal)] == [[1], [2, 3, 4], [5]]
    keys = [key_of_edit(Edit("", "C?", "C"))]
    for independent, batches in ((False, [2, 3, 4, 5]), (True, [2, 3, 4])):
        assert [entry["batch"] for entry in Run.of(journal).batches_with(keys, independent)] == batches


def test_times_are_said_in_units_for_people():
    assert [duration(s) for s in (0.2, 89, 200, 5399, 9000)] == ["1 s", "89 s", "3.3 min", "90 min", "2.5 h"]


def test_undoing_from_python(model_folder, tmp_path):
    rows = [Edit(f"n/{i}", f"The home of number {i} is", town) for i, town in enumerate(TOWNS[:4])]
    with LifelongEditor(model_folder, "fine-tune", output=tmp_path / "out", modules=LAST, guard=UNBOUNDED) as editor:
        for i in (0, 2):
            editor.edit(rows[i : i + 2])
        again = editor.undo([rows[1]])
        assert again == [rows[0], *rows[2:]]
        assert (editor.batches, editor.edits) == (0, [])
        assert torch.equal(editor.lm.weight(LAST[0]), editor.lm.initial_weight(LAST[0]))
        assert editor.edit(again).batch == 3
        with pytest.raises(ValueError, match="n/1 is not among the corrections that were made"):
            editor.undo([rows[1]])
    with LifelongEditor(model_folder, "fine-tune", modules=LAST) as bare, pytest.raises(ValueError, match="no journal"):
        bare.undo(rows)
