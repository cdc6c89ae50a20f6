import json
import re
import shlex
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import tyro

from agents.registry import find_agent
from agents.rows import ROWS
from benchmarks import capability, suites
from benchmarks.suites import SUITES, Suite, all_suites, find, id_of, model_fingerprint, read_suite
from editenv.data import edits_digest, load_edits
from editenv.models import PUBLIC

FOLDER = Path(str(resources.files("benchmarks.suites")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two versions of smoke, the second with other batches."""
    row = json.loads((FOLDER / "smoke-v1.json").read_text())
    (tmp_path / "smoke-v1.json").write_text(json.dumps(row))
    (tmp_path / "smoke-v2.json").write_text(json.dumps(row | {"version": 2, "batches": 7}))
    monkeypatch.setattr(suites.resources, "files", lambda _: tmp_path)
    return tmp_path


def test_suites_fit_their_splits():
    sizes = {"test": 8000, "validation": 1000, "train": 8350}
    for name, suite in SUITES.items():
        assert suite.name == name
        if suite.dataset == "atlas":
            assert suite.batches * suite.edits_per_step <= sizes[suite.split]


def test_every_size_of_the_papers_tables_and_figures_is_there_or_said_to_be_cut():
    sizes = {(s.batches, s.edits_per_step) for s in all_suites() if s.dataset == "atlas" and s.paper}
    table_5 = {(20, 100), (50, 100), (80, 100)}
    figure_8 = {(10, 500), (25, 200), (50, 100), (100, 50), (200, 25), (500, 10), (1000, 5)}
    assert {(400, 20), (30, 100), *table_5, *figure_8} <= sizes
    assert "150x100 and 200x100 have no counterpart" in SUITES["atlas-80x100"].paper.differs
    repeated = " ".join(s.paper.where for s in all_suites() if s.paper)
    assert all(
        f"{kind} {n}" in repeated.replace("Figures 5 and 7", "Figure 5 Figure 7")
        for kind, numbers in (("Table", (2, 4, 5)), ("Figure", (3, 4, 5, 6, 7, 8)))
        for n in numbers
    )


def test_the_agents_that_suites_are_about_exist():
    for agent in {agent for suite in all_suites() for agent in suite.agents}:
        find_agent(agent)  # an error names it


def test_commands_of_suites_are_accepted():
    commands = [suite.command for suite in all_suites() if suite.command]
    assert commands
    for command in commands:
        loop = re.fullmatch(r"for AGENT in ([\w -]+); do (python -m benchmarks\.capability .+); done", command)
        assert set(loop[1].split()) <= set(ROWS)
        assert tyro.cli(capability.Args, args=shlex.split(loop[2])[3:]).agent == "$AGENT"


def test_fingerprints_of_the_embedded_model_and_world_are_right():
    """And so, for all suites on them, is what the files say."""
    model = model_fingerprint("atlas")
    digests = {split: edits_digest(load_edits("atlas", split)) for split in ("train", "validation", "test")}
    for suite in all_suites():
        if suite.dataset == "atlas":
            if suite.model not in PUBLIC:  # tests/real has the fingerprints of public models
                assert suite.model_fingerprint == (model if suite.model == "atlas" else None)
            assert suite.edits_fingerprint == digests[suite.split]
        assert suite.training_fingerprint is not None
        if (suite.training or suite.dataset) == "atlas":
            assert suite.training_fingerprint == digests["train"]


def test_other_training_data_than_a_suites_are_refused():
    suite = replace(find("smoke"), training_fingerprint="0" * 64)
    with pytest.raises(
        ValueError, match=r"is about training with fingerprint 000000000000\.\.\., but that of atlas, split train"
    ):
        suite.check_fingerprints()
    assert (
        replace(suite, training_fingerprint=None).check_fingerprints()["training"] == find("smoke").training_fingerprint
    )
    assert "training_fingerprint" not in suite.setting(), "a record says it once"


def test_versions_and_cuts(folder):
    assert (find("smoke").version, find("smoke").batches) == (2, 7)
    assert (find("smoke-v1").version, find("smoke-v1").batches) == (1, 5)
    assert (find("smoke-v1").label, find("smoke").label) == ("smoke", "smoke-v2")
    cut = find("smoke@3-v1")
    assert find("smoke-v1@3") == cut
    assert (cut.batches, cut.id, cut.label, cut.version) == (3, "smoke@3-v1", "smoke@3", 1)
    for suite in (find("smoke-v1"), find("smoke"), cut, find("smoke@3")):
        assert find(id_of(suite.label)) == find(suite.id) == suite


@pytest.mark.parametrize("text", ["smok", "smoke-v3", "smoke@6-v1", "smoke@0", "", "@2", "smoke-v1@2-v1"])
def test_what_is_no_suite_is_refused(folder, text):
    with pytest.raises(ValueError, match="suite"):
        find(text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batches": 0}, "batches"),
        ({"batches": True}, "batches"),
        ({"edits_per_step": "20"}, "edits_per_step"),
        ({"order": "random"}, "order"),
        ({"protocols": ["generation"]}, "protocols"),
        ({"protocols": ["teacher_forced", "generation", "taste"]}, "protocols"),
        ({"dataset": "counterfact:x", "options": {}}, "probes"),
        ({"protocols": [*suites.PROTOCOLS[:2], "portability"]}, "portability needs a data set FORMAT:PATH"),
        ({"options": []}, "options"),
        ({"agents": "rledit"}, "agents"),
        ({"agents": [1]}, "agents"),
        ({"model_fingerprint": "abc"}, "model_fingerprint"),
        ({"edits_fingerprint": 5}, "edits_fingerprint"),
        ({"training_fingerprint": "abc"}, "training_fingerprint"),
        ({"max_actions_per_batch": 0}, "max_actions_per_batch"),
        ({"paper": {"where": "Table 9"}}, "paper"),
        (
            {"paper": {"where": "Table 2", "task": "", "presets": ["gpt-5/zsre"], "differs": ""}},
            "paper.presets: there is no 'gpt-5/zsre'",
        ),
        ({"colour": "red"}, "unknown fields ['colour']"),
        ({"version": 2}, "smoke-v2.json"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path, change, named):
    path = tmp_path / "smoke-v1.json"
    path.write_text(json.dumps(json.loads((FOLDER / "smoke-v1.json").read_text()) | change))
    with pytest.raises(ValueError) as refusal:
        read_suite(path)
    assert str(path) in str(refusal.value)
    assert named in str(refusal.value)


def test_a_missing_field_and_what_is_no_json_are_named(tmp_path):
    path = tmp_path / "smoke-v1.json"
    row = json.loads((FOLDER / "smoke-v1.json").read_text())
    del row["order"]
    for text, named in ((json.dumps(row), "missing fields ['order']"), ("{", "smoke-v1.json"), ("[]", "an object")):
        path.write_text(text)
        with pytest.raises(ValueError) as refusal:
            read_suite(path)
        assert named in str(refusal.value)


def test_another_model_is_refused_and_any_bit_counts(model_folder, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(model_folder, copied)
    suite = Suite(
        "micro", 3, 2, model=str(copied), split="validation", model_fingerprint=model_fingerprint(model_folder)
    )
    assert suite.check_fingerprints()["model"] == suite.model_fingerprint
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="suite micro-v1 is about model with fingerprint"):
        suite.check_fingerprints()
    weights.unlink()
    with pytest.raises(ValueError, match="safetensors"):
        suite.check_fingerprints()


def test_other_edits_are_refused_and_so_are_too_few(model_folder, tmp_path):
    path = tmp_path / "edits.jsonl"
    rows = [{"prompt": f"The home of {name} is", "target": "Oslo"} for name in ("Ada", "Nils", "Vega", "Omar")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = Suite(
        "own", 2, 2, model=model_folder, dataset="own:{data}/edits.jsonl", split="all", protocols=suites.PROTOCOLS[:2]
    )
    located = suite.at(None, tmp_path)
    pinned = replace(located, edits_fingerprint=located.check_fingerprints()["edits"])
    pinned.check_fingerprints()
    with pytest.raises(ValueError, match="suite own-v1 makes 6 edits"):
        replace(located, batches=3).check_fingerprints()
    rows[2]["target"] = "Rome"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="is about edits with fingerprint"):
        pinned.check_fingerprints()


def test_questions_that_are_asked_are_part_of_the_edits(model_folder, tmp_path):
    path = tmp_path / "edits.jsonl"
    row = {"prompt": "The home of Ada is", "target": "Oslo", "portability": [{"kind": "a", "prompt": "p"}]}
    path.write_text(json.dumps(row))
    plain = Suite("own", 1, 1, model=model_folder, dataset=f"own:{path}", split="all", protocols=suites.PROTOCOLS[:2])
    asking = replace(plain, protocols=(*plain.protocols, "portability"))
    before = [suite.check_fingerprints() for suite in (plain, asking)]
    row["portability"][0]["prompt"] = "q"
    path.write_text(json.dumps(row))
    after = [suite.check_fingerprints() for suite in (plain, asking)]
    assert [a["edits"] == b["edits"] for a, b in zip(before, after, strict=True)] == [True, False]
    assert [a["training"] == b["training"] for a, b in zip(before, after, strict=True)] == [True, True]


def test_suites_on_real_data_say_what_they_need(tmp_path):
    suite = SUITES["counterfact-100x20"]
    with pytest.raises(ValueError, match="--data"):
        suite.at("some/model", None)
    with pytest.raises(ValueError, match="--model"):
        suite.at(None, tmp_path)
    located = suite.at("some/model", tmp_path)
    assert located.environment()["dataset"] == f"counterfact:{tmp_path}/counterfact"
    assert located.environment(training=True)["split"] == "train"
    assert SUITES["zsre-50x20"].at("some/model", tmp_path).environment(training=True)["dataset"] == "atlas"


@pytest.fixture
def real(tmp_path):
    """A suite with text of its own, and with other options for what is learned from."""
    return Suite(
        name="real",
        batches=1,
        edits_per_step=2,
        dataset="counterfact:{data}",
        options=(("limit", 2),),
        training_options=(("limit", 3),),
        text="wise:{data}/wise.json",
        drift_text="wise:{data}/drift.json",
        data=tmp_path,
    )


def test_what_is_learned_from_may_be_read_with_other_options(real):
    edited, trained_on = real.environment(), real.environment(training=True)
    assert edited["dataset_options"] == {"limit": 2}
    assert trained_on["dataset_options"] == {"limit": 3}
    assert replace(real, training_options=None).environment(training=True)["dataset_options"] == {"limit": 2}


def test_suites_that_name_texts_pin_them():
    naming = [suite for suite in all_suites() if suite.text or suite.drift_text]
    assert naming
    for suite in naming:
        assert (suite.text is None, suite.drift_text is None) == (
            suite.text_fingerprint is None,
            suite.drift_text_fingerprint is None,
        )
        assert not {"text_fingerprint", "drift_text_fingerprint"} & suite.setting().keys()


def test_texts_lie_in_the_folder_of_the_data_sets(real, tmp_path):
    assert real.in_data(real.text) == f"wise:{tmp_path}/wise.json"
    assert real.in_data(None) is None
    with pytest.raises(ValueError, match="give its folder with --data"):
        replace(real, dataset="atlas", data=None).at("atlas", None)
    assert real.at("atlas", None).data == tmp_path, "a file of one's own has its folder"


def test_records_on_other_text_are_not_compared(real):
    assert real.setting()["drift_text"] == "wise:{data}/drift.json"
    assert "drift_text" not in replace(real, text=None, drift_text=None).setting()
    assert replace(real, training_options=None).setting() == real.setting()
