"""The command ``editenv edit``: a file of corrections and a model folder, and nothing lost of either."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from agents import cli
from agents.editing import corrections
from agents.editing.arguments import EditArgs
from agents.editing.edit_command import _needs_subjects
from agents.editing.edit_command import edit as run_edit
from agents.editing.editor import LifelongEditor
from agents.editing.guard import Guard
from agents.editing.reading import edits_for
from editenv.data.files import FileOptions, load_file_edits
from editenv.delta_files import read_delta_file, write_delta_file
from editenv.evaluation import metrics
from editenv.journal import Journal, JournalError

LAST = ("model.layers.2.mlp.down_proj",)
TOWNS = ("Rome", "Oslo", "Bonn", "Lima", "Kiev")


def rows(count, first=0):
    return [
        {"prompt": f"The home of number {i} is", "target": TOWNS[i % 5], "subject": f"number {i}"}
        for i in range(first, first + count)
    ]


def write(path, records):
    path.write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def my_model(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "my-model")
    return tmp_path / "my-model"


@pytest.fixture
def edit(my_model, tmp_path):
    """The command on five corrections in batches of two."""
    write(tmp_path / "edits.jsonl", rows(5))

    def run(**options):
        arguments = {"edits": str(tmp_path / "edits.jsonl"), "output": tmp_path / "out", "model": str(my_model)}
        arguments |= {
            "method": "fine-tune",
            "modules": LAST,
            "edits_per_step": 2,
            "guard": Guard(1e9, 1e9, None, None, retry=False),
        }
        run_edit(EditArgs(**arguments | options))
        return json.loads((arguments | options)["output"].joinpath("report.json").read_text())

    return run


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_a_separator_within_a_text_does_not_end_a_row_of_a_report(tmp_path, mark):
    written = [{"prompt": f"The home{mark}of Ada is", "target": f"Rome{mark}"}, {"prompt": "Tea is", "target": "hot"}]
    corrections.write_lines(tmp_path / "results.jsonl", written)
    assert corrections.reported(tmp_path) == written
    corrections.write_lines(tmp_path / "results.jsonl", [])
    assert corrections.reported(tmp_path) == []


def test_each_correction_has_an_outcome(edit, tmp_path, capsys, monkeypatch):
    says = metrics.generate

    def goes_on(lm, texts, *rest, **options):
        texts_said = says(lm, texts, *rest, **options)
        return [*texts_said[:2], f"{TOWNS[2]} and on", *texts_said[3:]] if len(texts) == 5 else texts_said

    monkeypatch.setattr("agents.editing.corrections.metrics.generate", goes_on)
    report = edit()
    outcomes = lines(tmp_path / "out/results.jsonl")
    assert [(row["prompt"], row["target"]) for row in outcomes] == [(row["prompt"], row["target"]) for row in rows(5)]
    assert all(row["applied"] for row in outcomes)
    assert all(row["right"] == (row["said"] == row["target"]) for row in outcomes)
    right = 100 * sum(row["right"] for row in outcomes) / 5
    assert right == pytest.approx(report["generation"]["efficacy"], abs=1e-3)
    assert (report["asked"], report["edits"], report["left_out"]) == (5, 5, {})
    going_on = [row for row in outcomes if row["said"].startswith(row["target"]) and not row["right"]]
    assert outcomes[2] in going_on
    shown = capsys.readouterr().out
    assert report["goes_on"] == len(going_on)
    assert report["target_end"] == ".", "which is why there is no hint about the end of an answer"
    assert "of the answers are right and go on" not in shown
    assert "perplexity of held-out text" in shown
    assert "results.jsonl" in shown


@pytest.mark.parametrize("said", [0, 1, 2])
def test_how_many_corrections_hold_is_said_plainly(edit, tmp_path, capsys, monkeypatch, said):
    corrections = rows(2)

    def answers(lm, prompts, *rest, **options):
        return [f"{row['target']}." if i < said else "nobody knows" for i, row in enumerate(corrections)]

    monkeypatch.setattr("agents.editing.corrections.metrics.generate", answers)
    report = edit(edits=write(tmp_path / "two.jsonl", corrections), method="ultraedit")
    shown = capsys.readouterr()
    assert (report["hold"], report["asked"]) == (said, 2)
    assert f"{said} of 2 corrections hold" in shown.out
    assert ("something else" in shown.out) == (said < 2)
    # Of two edits UltraEdit has hardly any statistics: it makes them badly, and says so.
    assert "fewer than 10 are made badly" in report["warning"]
    assert "fewer than 10 are made badly" in shown.err


def test_a_method_without_statistics_of_edits_or_a_large_first_batch_needs_no_warning(edit, tmp_path, capsys):
    assert "warning" not in edit()
    many = write(tmp_path / "many.jsonl", rows(10))
    assert "warning" not in edit(
        edits=many, method="ultraedit", edits_per_step=10, output=tmp_path / "large", save_model=False
    )
    assert "made badly" not in capsys.readouterr().err


@pytest.mark.parametrize("where", ["beside", "around", "inside"])
def test_the_model_that_is_edited_is_never_touched(edit, my_model, tmp_path, where):
    """Not even where the results would go to its own folder."""
    if where == "beside":
        my_model = my_model.rename(tmp_path / "model")
    elif where == "around":
        (tmp_path / "model").mkdir()
        my_model = my_model.rename(tmp_path / "model/mine")
    output = my_model / "out" if where == "inside" else tmp_path
    before = content(my_model)
    with pytest.raises(ValueError, match="never changed"):
        edit(model=str(my_model), output=output)
    assert content(my_model) == before
    with (
        LifelongEditor(str(my_model), "fine-tune", modules=LAST) as editor,
        pytest.raises(ValueError, match="never changed"),
    ):
        editor.save(my_model)
    assert content(my_model) == before


def test_what_is_in_the_way_is_said_before_anything_is_done(edit, my_model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(my_model, out / "model")  # of somebody's own
    before = content(out)
    with pytest.raises(ValueError, match=r"was not saved here: config\.json"):
        edit()
    shutil.rmtree(out / "model")
    (out / "report.json").write_text("mine")
    with pytest.raises(ValueError, match=r"report\.json of something else"):
        edit()
    (out / "report.json").unlink()
    for target, words in ((my_model, "never changed"), (tmp_path / "elsewhere", "is a link")):
        (out / "model").symlink_to(target)
        with pytest.raises(ValueError, match=words):
            edit()
        (out / "model").unlink()
    (out / "model").mkdir()
    assert content(my_model) == {path.relative_to("model"): value for path, value in before.items()}
    assert [path.name for path in out.iterdir()] == ["model"]


def test_corrections_may_be_added_and_the_file_may_be_called_something_else(edit, tmp_path, capsys):
    edit()
    first = load_file(tmp_path / "out/model/model.safetensors")
    write(tmp_path / "later.jsonl", rows(8))
    report = edit(edits=str(tmp_path / "later.jsonl"))
    assert report["edits"] == 8
    assert "going on after batch 3: 5 of 8" in capsys.readouterr().err
    assert [entry["edits"] for entry in lines(tmp_path / "out/journal.jsonl")[1:]] == [2, 2, 1, 2, 1]
    later = load_file(tmp_path / "out/model/model.safetensors")
    assert any(not torch.equal(later[name], first[name]) for name in first)
    changed = rows(8)
    changed[3]["target"] = "Quito"
    write(tmp_path / "later.jsonl", changed)
    before = content(tmp_path / "out")
    with pytest.raises(JournalError, match=r"changed edits\.jsonl/4: .* -> Lima; now The home of number 3 is -> Quito"):
        edit(edits=str(tmp_path / "later.jsonl"))
    write(tmp_path / "later.jsonl", rows(4))
    with pytest.raises(JournalError, match=r"(?s)removed edits\.jsonl/5: .* number 4 is.*--changed undo"):
        edit(edits=str(tmp_path / "later.jsonl"))
    assert content(tmp_path / "out") == before


def test_a_model_that_cannot_be_asked_is_saved_all_the_same(edit, tmp_path, monkeypatch, capsys):
    def fails(_):
        raise IndexError("beyond the context")

    monkeypatch.setattr(LifelongEditor, "evaluate", fails)
    report = edit()
    assert report["not_evaluated"] == "IndexError: beyond the context"
    assert "is saved, but could not be asked" in capsys.readouterr().err
    AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    assert (tmp_path / "out/deltas.safetensors").exists()


def test_corrections_that_were_taken_back_are_a_file_to_try_again(edit, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(LifelongEditor, "_broken_bound", lambda self, *_: "too bold" if self.batches == 1 else None)
    report = edit()
    assert (report["asked"], report["edits"]) == (5, 3)
    again = load_file_edits(str(tmp_path / "out/not-applied.jsonl"), "all", FileOptions())
    refused = [row for row in lines(tmp_path / "out/results.jsonl") if not row["applied"]]
    assert (
        [edit.prompt for edit in again] == [row["prompt"] for row in refused] == [row["prompt"] for row in rows(2, 2)]
    )
    assert all(row["reason"] == "too bold" for row in refused)
    shown = capsys.readouterr()
    assert "2 edits were taken back" in shown.out
    assert "3 of 5 edits" in shown.out
    assert "batch 2 was taken back: too bold" in shown.err


def test_corrections_with_ids_are_called_by_them(edit, tmp_path, capsys, monkeypatch):
    question = {"kind": "two_hop", "prompt": "The country of number 2 is", "answer": "Peru"}
    records = [row | {"id": f"case-{i}"} for i, row in enumerate(rows(5))]
    records[2]["portability"] = [question]
    del records[3]["id"]
    write(tmp_path / "edits.jsonl", records)
    monkeypatch.setattr(LifelongEditor, "_broken_bound", lambda self, *_: "too bold" if self.batches == 1 else None)
    edit()
    assert "batch 2 was taken back: too bold (case-2, edits.jsonl/4)" in capsys.readouterr().err
    outcomes = lines(tmp_path / "out/results.jsonl")
    assert [row["id"] for row in outcomes] == ["case-0", "case-1", "case-2", "edits.jsonl/4", "case-4"]
    assert lines(tmp_path / "out/not-applied.jsonl") == records[2:4]
    # The id and the questions are no part of what was edited: the same run goes on without them.
    write(tmp_path / "edits.jsonl", rows(6))
    assert edit()["asked"] == 6
    assert "going on after batch 3: 5 of 6" in capsys.readouterr().err


def test_what_is_left_out_is_said(edit, tmp_path, capsys):
    long = {"prompt": "very " * 400 + "long", "target": "Rome"}
    path = write(tmp_path / "edits.jsonl", [*rows(2), long, {"prompt": "no target"}])
    with pytest.raises(ValueError, match="--bad-records skip leaves"):
        edit()
    assert not (tmp_path / "out").exists()
    report = edit(edits=path, bad_records="skip")
    assert report["asked"] == 2
    assert sum(report["left_out"].values()) == 2
    messages = capsys.readouterr().err
    assert "left out: edits.jsonl, record 3" in messages
    assert "left out: edits.jsonl, record 4" in messages


def test_what_the_method_cannot_make_is_refused_before_the_first_edit(edit, tmp_path):
    without = rows(5)
    del without[4]["subject"]
    write(tmp_path / "edits.jsonl", without)
    text = tmp_path / "text.txt"
    text.write_text("Ada is in Rome.\n")
    with pytest.raises(ValueError, match="field 'subject': is missing"):
        edit(method="rome", text=str(text), modules=("layers.1.mlp.down_proj",))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="edits_per_step must be a whole number of at least 1, not 0"):
        edit(edits_per_step=0)


def test_another_model_around_the_same_edited_weights_is_refused(edit, my_model, tmp_path, model_folder):
    edit()
    weights = load_file(my_model / "model.safetensors")
    name = next(name for name in weights if "embed" in name)
    weights[name] = weights[name] + 1
    save_file(weights, my_model / "model.safetensors", {"format": "pt"})
    with pytest.raises(JournalError, match="frozen was"):
        edit()
    deltas = tmp_path / "out/deltas.safetensors"
    with pytest.raises(ValueError, match="other weights or the tokenizer"):
        cli.apply(cli.ApplyArgs(deltas, tmp_path / "applied", str(my_model)))
    assert not (tmp_path / "applied").exists()
    cli.apply(cli.ApplyArgs(deltas, tmp_path / "applied", model_folder))


def swapped_merges(content):
    merges = content["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


BOS_TWICE = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 2 + [{"Sequence": {"id": "A", "type_id": 0}}]

CHANGES = {
    "hidden_act was 'silu', is 'gelu'": ("config.json", lambda c: c.update(hidden_act="gelu")),
    "rms_norm_eps was": ("config.json", lambda c: c.update(rms_norm_eps=1e-3)),
    "rope_theta was": ("config.json", lambda c: c["rope_parameters"].update(rope_theta=500.0)),
    "another merges": ("tokenizer.json", swapped_merges),
    "another normalizer": ("tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"})),
    "another pre_tokenizer": ("tokenizer.json", lambda c: c["pre_tokenizer"].update(add_prefix_space=True)),
    "another post_processor": ("tokenizer.json", lambda c: c["post_processor"].update(single=BOS_TWICE)),
}


def test_a_model_whose_configuration_or_tokenizer_was_changed_is_another_one(edit, my_model, tmp_path):
    edit()
    before = content(tmp_path / "out")
    deltas = tmp_path / "out/deltas.safetensors"
    for said, (name, change) in CHANGES.items():
        as_it_was = (my_model / name).read_text()
        changed = json.loads(as_it_was)
        change(changed)
        (my_model / name).write_text(json.dumps(changed))
        with pytest.raises(JournalError, match=rf"journal\.jsonl belongs to another run .*{said}"):
            edit()
        with pytest.raises(ValueError, match=rf"deltas\.safetensors was made for another model.*{said}"):
            cli.apply(cli.ApplyArgs(deltas, tmp_path / "applied", str(my_model)))
        (my_model / name).write_text(as_it_was)
    assert content(tmp_path / "out") == before
    assert not (tmp_path / "applied").exists()
    config = json.loads((my_model / "config.json").read_text())
    (my_model / "config.json").write_text(json.dumps(config | {"use_cache": False, "transformers_version": "4.40"}))
    edit()  # what no output depends on


def test_what_an_earlier_version_wrote_is_gone_on_with_and_what_was_not_checked_is_said(edit, tmp_path, my_model):
    edit()
    weights = content(tmp_path / "out/model")[Path("model.safetensors")]
    path = tmp_path / "out/journal.jsonl"
    header, *rest = lines(path)
    batches = [load_file(tmp_path / f"out/batches/{i:06d}.safetensors") for i in (1, 2, 3)]
    shutil.rmtree(tmp_path / "out/batches")
    path.unlink()
    older = Journal(tmp_path / "out", {k: v for k, v in header.items() if k not in ("identity", "chain", "journal")})
    for entry, tensors in zip(rest, batches, strict=True):
        older.append({k: v for k, v in entry.items() if k not in ("batch", "chain", "sha256")}, tensors)
    older.close()
    with pytest.warns(UserWarning, match=r"journal\.jsonl: an earlier version wrote it.*not checked"):
        edit()
    assert content(tmp_path / "out/model")[Path("model.safetensors")] == weights
    deltas = tmp_path / "out/deltas.safetensors"
    with safe_open(deltas, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    older_metadata = {k: v for k, v in metadata.items() if k not in ("identity", "sha256")}
    save_file({k: v for k, v in tensors.items() if not k.startswith("weights/")}, deltas, older_metadata)
    with pytest.warns(UserWarning, match=r"deltas\.safetensors: an earlier version wrote it.*not checked"):
        cli.apply(cli.ApplyArgs(deltas, tmp_path / "applied", str(my_model)))
    assert content(tmp_path / "applied")[Path("model.safetensors")] == weights


def test_another_version_of_a_library_is_a_warning(edit, monkeypatch):
    edit()
    monkeypatch.setattr("editenv.identity.version", lambda name: "99.0")
    with pytest.warns(UserWarning, match=r"journal\.jsonl: it was made with torch .*, this is torch 99\.0"):
        edit()


def test_nothing_is_written_into_the_folder_of_the_model(edit, my_model, tmp_path, monkeypatch):
    before = content(my_model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(my_model)
    (my_model / "inner").mkdir()
    for output in (
        my_model,
        Path("my-model"),
        tmp_path / "link",
        tmp_path / "link/deep/er",
        Path("x/../my-model/inner"),
    ):
        with pytest.raises(ValueError, match="never changed"):
            edit(output=output, save_model=False)
        with pytest.raises(ValueError, match="never changed"):
            LifelongEditor(str(my_model), "fine-tune", modules=LAST, output=output)
        with pytest.raises(ValueError, match="never changed"):
            edit(output=output, model=str(tmp_path / "link"), save_model=False)
    (my_model / "inner").rmdir()
    assert content(my_model) == before
    edit()
    deltas = tmp_path / "out/deltas.safetensors"
    for command in (
        lambda out: cli.apply(cli.ApplyArgs(deltas, out, str(my_model))),
        lambda out: cli.revert(cli.RevertArgs(deltas, out, str(my_model))),
    ):
        for output in (my_model / "new", tmp_path / "link/new"):
            with pytest.raises(ValueError, match="never changed"):
                command(output)
    assert content(my_model) == before
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_read_is_not_written_over(edit, tmp_path):
    (tmp_path / "here").mkdir()
    for name in ("results.jsonl", "not-applied.jsonl", "journal.jsonl"):
        path = write(tmp_path / "here" / name, rows(3))
        before = content(tmp_path / "here")
        for given in (path, f"own:{path}"):
            with pytest.raises(ValueError, match=f"{name} would be written over"):
                edit(edits=given, output=tmp_path / "here")
        assert content(tmp_path / "here") == before
        os.unlink(path)
    (tmp_path / "policy").mkdir()
    with pytest.raises(ValueError, match="folder of the policy"):
        edit(policy=tmp_path / "policy", output=tmp_path / "policy")


FAILURES = {
    "model": ("transformers.PreTrainedModel.save_pretrained", SafetensorError("I/O error: No space left on device")),
    "tokenizer": ("transformers.PreTrainedTokenizerBase.save_pretrained", Exception("No space left on device")),
    "deltas": ("editenv.delta_files.save_file", SafetensorError("I/O error: No space left on device")),
    "results": ("pathlib.Path.write_text", OSError(28, "No space left on device")),
}
"""What each library says of a full disk (tokenizers raises a bare exception)."""


@pytest.mark.parametrize("what", FAILURES)
def test_a_full_disk_is_told_in_a_line_and_the_same_command_goes_on(edit, tmp_path, monkeypatch, capsys, what):
    target, error = FAILURES[what]
    file = {"deltas": "deltas.safetensors", "results": "results.jsonl"}.get(what, "model")

    def full(*_, **__):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(target, full)
        if what == "results":  # after the options and the marker of the model, which are written likewise
            patched.setattr("agents.editing.edit_command.write_options", lambda *_: None)
            patched.setattr("agents.editing.editor.save_model", lambda *_: None)
        with pytest.raises(SystemExit):
            cli._run(lambda _: edit(), None, tmp_path / "out/journal.jsonl")
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert str(tmp_path / "out" / file) in said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*.partial")) + list((tmp_path / "out").glob(".model*"))
    assert edit()["edits"] == 5
    assert "going on after batch 3" in capsys.readouterr().err


def test_a_batch_of_a_journal_is_not_a_file_of_deltas(edit, tmp_path, my_model):
    edit()
    for command in (cli.revert, cli.apply):
        kind = cli.RevertArgs if command is cli.revert else cli.ApplyArgs
        with pytest.raises(ValueError, match=r"000002\.safetensors is not a file of deltas.*one batch of a journal"):
            command(kind(tmp_path / "out/batches/000002.safetensors", tmp_path / "back", str(my_model)))


def test_a_revert_is_judged_weight_by_weight(edit, tmp_path, capsys):
    edit()
    out, deltas = tmp_path / "out", tmp_path / "out/deltas.safetensors"
    cli.revert(cli.RevertArgs(deltas, tmp_path / "back", str(out / "model")))
    assert "back: the base model, within rounding" in capsys.readouterr().out
    actions, metadata = read_delta_file(deltas)
    weights = {k.removeprefix("weights/"): v for k, v in load_file(deltas).items() if k.startswith("weights/")}
    write_delta_file(deltas, actions[: len(actions) // 2], metadata["before"], metadata["after"], weights=weights)
    with pytest.raises(ValueError, match=r"not the base model within rounding: .* weights of model\.layers\.2"):
        cli.revert(cli.RevertArgs(deltas, tmp_path / "half", str(out / "model")))
    assert not (tmp_path / "half").exists()


def test_a_result_that_differs_by_rounding_is_taken_if_it_is_allowed(edit, my_model, tmp_path, capsys):
    edit()
    deltas = tmp_path / "out/deltas.safetensors"
    actions, metadata = read_delta_file(deltas)
    weights = {k.removeprefix("weights/"): v for k, v in load_file(deltas).items() if k.startswith("weights/")}
    write_delta_file(deltas, actions, metadata["before"], "0" * 64, weights=weights)  # as another machine may have it
    with pytest.raises(ValueError, match="--allow-rounding"):
        cli.apply(cli.ApplyArgs(deltas, tmp_path / "applied", str(my_model)))
    cli.apply(cli.ApplyArgs(deltas, tmp_path / "applied", str(my_model), allow_rounding=True))
    assert "the edited model, within rounding" in capsys.readouterr().out
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("applied", "out/model"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_what_a_killed_process_left_is_cleared_away_and_a_failure_leaves_the_old_model(edit, tmp_path, monkeypatch):
    edit()
    out = tmp_path / "out"
    (out / ".model.partial").mkdir()
    (out / ".model.partial/model.safetensors").write_bytes(b"half")
    before = content(out / "model")
    edit()
    assert content(out / "model") == before
    assert not list(out.glob(".model*"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        edit()
    assert content(out / "model") == before
    assert not list(out.glob(".model*"))


def test_small_steps_that_add_up_are_bounded_by_the_unedited_model(edit, tmp_path, monkeypatch):
    perplexities = iter([10.0, 12.0, 16.0, 19.0, 25.0])  # the unedited model's, then after each batch
    monkeypatch.setattr(LifelongEditor, "_held_out_perplexity", lambda self: next(perplexities))
    write(tmp_path / "edits.jsonl", rows(8))
    report = edit(guard=Guard(max_perplexity=1.5, max_weight_norm=1e9, max_drift=1.5, max_lost=None, retry=False))
    assert [row["batch"] for row in report["rolled_back"]] == [2, 3, 4]
    assert "over 1.5 times the unedited model's 10" in report["rolled_back"][0]["reason"]


def test_an_edit_beyond_the_context_is_refused_from_python_too(my_model):
    with LifelongEditor(str(my_model), "fine-tune", modules=LAST) as editor:
        with pytest.raises(ValueError, match=r"edit, record 2, field 'prompt': has \d+ tokens"):
            editor.edit([rows(1)[0], {"prompt": "far " * 300, "target": "Rome"}])
        assert editor.batches == 0


def test_a_model_that_was_moved_aside_comes_back(edit, tmp_path, monkeypatch):
    """Killed, or failing, between the old model's going and the new one's coming."""
    edit()
    out = tmp_path / "out"
    before = content(out / "model")
    (out / "model").rename(out / ".model.old")
    edit()
    assert content(out / "model") == before

    def replace(source, target, real=os.replace):
        if str(source).endswith("model.partial"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr("editenv.atomic_files.os.replace", replace)
    with pytest.raises(OSError, match="Input/output"):
        edit()
    assert content(out / "model") == before
    assert not list(out.glob(".model*"))


def test_a_saved_model_with_something_beside_it_is_not_replaced(edit, tmp_path):
    edit()
    (tmp_path / "out/model/NOTES.md").write_text("what I found out about it")
    with pytest.raises(ValueError, match=r"not saved here: NOTES\.md"):
        edit()
    assert (tmp_path / "out/model/NOTES.md").exists()
    edit(save_model=False)


def test_the_stored_precision_is_told(edit, my_model, capsys):
    config = json.loads((my_model / "config.json").read_text())
    (my_model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    edit()
    assert "is bfloat16, and is edited and saved in float32" in capsys.readouterr().err


def test_hints_are_given_where_they_hold(tmp_path, capsys, monkeypatch):
    def fails(_):
        raise OSError("no room")

    for kept, hinted in ((None, False), (tmp_path / "journal.jsonl", False), (tmp_path, True)):
        with pytest.raises(SystemExit):
            cli._run(fails, SimpleNamespace(), kept)
        assert ("the same command goes on" in capsys.readouterr().err) == hinted


def test_a_saved_model_may_be_read_by_others(edit, tmp_path):
    edit()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out" / "model").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_facts_that_cannot_be_looked_up_are_left_out_for_methods_that_look_them_up(model_folder, tmp_path, capsys):
    path = write(tmp_path / "edits.jsonl", [*rows(2), rows(1, 2)[0] | {"subject": "some\x1b[1mbody"}])
    with pytest.raises(
        ValueError, match=r"record 3, field 'subject': .*does not stand .*--bad-records skip leaves such"
    ):
        edits_for(path, "error", model_folder, "cpu", "float32", subjects=True)
    edits = edits_for(path, "skip", model_folder, "cpu", "float32", subjects=True)
    assert [edit.id for edit in edits] == ["edits.jsonl/1", "edits.jsonl/2"]
    said = capsys.readouterr().err
    assert "left out: edits.jsonl, record 3, field 'subject'" in said
    assert "\x1b" not in said
    assert len(edits_for(path, "error", model_folder, "cpu", "float32")) == 3
    arguments = {"edits": path, "output": tmp_path / "out", "model": model_folder}
    assert _needs_subjects(EditArgs(**arguments, method="memit-seq"))
    assert not _needs_subjects(EditArgs(**arguments, method="fine-tune"))
    assert not _needs_subjects(EditArgs(**arguments))


def test_what_is_taught_after_a_target_counts_before_anything_is_edited(
    edit, tokenizer, model_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("agents.editing.preparation.STOPS_WITHIN", 1)
    prompt = "a" + " b" * 252
    while len(tokenizer(f"{prompt} Rome")["input_ids"]) < 256:
        prompt += " b"
    assert len(tokenizer(f"{prompt} Rome")["input_ids"]) == 256
    path = write(tmp_path / "long.jsonl", [*rows(2), {"prompt": prompt, "target": "Rome"}])
    what = r"long.jsonl, record 3, field 'prompt': has 257 tokens with its answer and the '\.' .*--bad-records skip"
    with pytest.raises(ValueError, match=what):
        edit(edits=path, target_end=".")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=what):  # the tiny model does not stop by itself
        edits_for(path, "error", model_folder, "cpu", "float32", taught_end=None)
    kept = {end: len(edits_for(path, "skip", model_folder, "cpu", "float32", taught_end=end)) for end in (".", "")}
    assert kept == {".": 2, "": 3}


def test_what_is_left_of_a_file_of_bad_records_is_its_reasons(model_folder, tmp_path, capsys):
    path = write(tmp_path / "edits.jsonl", [row | {"note": "x"} for row in rows(2)])
    assert len(edits_for(path, "skip", model_folder, "cpu", "float32")) == 2
    assert "note: field 'note' is not used (2 records, from record 1)" in capsys.readouterr().err
    path = write(tmp_path / "edits.jsonl", [row | {"subject": "x"} for row in rows(2)])
    with pytest.raises(ValueError, match=r"(?s)can be used.*2 subject:.*record 1, field.*record 2, field"):
        edits_for(path, "skip", model_folder, "cpu", "float32", subjects=True)
