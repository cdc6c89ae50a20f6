"""Suites of one's own: the guide word by word, files, records, and what is refused."""

import inspect
import json
import re
import shutil
import warnings
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import pytest
import tyro
from documents import ROOT, blocks_of, command_lines

from agents import cli
from agents.registry import environment_of, make_agent, make_method, settings_of
from benchmarks import run as command
from benchmarks import tune, validate
from benchmarks.results.records import read
from benchmarks.run import Args, main
from benchmarks.suites import Suite, find, own, text_fingerprint
from benchmarks.suites.own import OwnData, suite_of

GUIDE = ROOT / "docs/guides/own_table.md"
FEW = {"--trials 8": "--trials 2", "--seeds 0-4": "--seeds 0", "[:200]": "[:60]", '"batches": 3': '"batches": 1'}
"""The page's budgets, and those of the test."""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Cells without a process of their own, each of which would import torch."""

    def run_here(todo, progress):
        for cell in todo:
            yield cell, cell.run(progress)

    monkeypatch.setattr(command, "run_here", run_here)


@pytest.fixture
def facts(tmp_path, monkeypatch):
    """Sixty records in the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "prompt": f"The home of person {i} is",
            "target": ("Oslo", "Rome", "Lima")[i % 3],
            "subject": f"person {i}",
            "rephrases": [f"Person {i} lives in"],
            "locality": [{"prompt": f"The colour of number {i} is", "answer": "red"}],
        }
        for i in range(60)
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MINE = """
from agents.baselines.no_edit import NoEdit

class Mine(NoEdit):
    def __init__(self, step: float = 0.5) -> None:
        self.step = step
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    (tmp_path / "spaces.json").write_text(json.dumps({"Mine": {"step": [0.1, 10.0]}}))
    return path


# -- the guide ----------------------------------------------------------------------------------------------------


def start(words, monkeypatch):
    """A command line as it is started."""
    if words[0] == "editenv":
        monkeypatch.setattr("sys.argv", words)
        cli.main()
        return
    module = import_module(words[2])
    code = module.main(tyro.cli(module.Args, args=words[3:]))
    assert not code, words


@pytest.mark.slow  # seven commands: ten seconds
def test_the_guide_leads_from_thirty_lines_to_a_table(tmp_path, monkeypatch, model_folder, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "tiny")
    commands = 0
    for block in blocks_of(GUIDE):
        code = block.code.replace("--model atlas", "--model tiny").replace('"model": "atlas"', '"model": "tiny"')
        for budget, small in FEW.items():
            code = code.replace(budget, small)
        if block.title:
            Path(block.title).write_text(code)
        elif block.language == "python":
            exec(compile(code, GUIDE, "exec"), {})
        else:
            commands += len(command_lines(code))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for words in command_lines(code):
                    start(words, monkeypatch)
    assert commands <= 10
    assert len([line for line in Path("my_method.py").read_text().splitlines() if line.strip()]) <= 30
    records = read(Path("runs/facts/results.jsonl"))
    assert {record.suite for record in records} == {"facts-1x20"}
    assert [record.agent for record in records] == ["no-edit", "fine-tune@./mine", "my_method.py:MyMethod@./mine"]
    chosen = json.loads(Path("mine/MyMethod.json").read_text())["settings"]
    tuned = records[-1]
    assert tuned.configuration["settings"].items() >= chosen.items()
    assert "all hold" in capsys.readouterr().out
    assert str(tmp_path) not in Path("runs/facts/results.jsonl").read_text(), "no folder of this machine"
    assert {record.agent for record in read(Path("runs/suite/results.jsonl"))} == {"no-edit", "fine-tune@./mine"}


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def suite_file(facts, model_folder):
    def write(file="mine-v2.json", **changes):
        row = {"dataset": "{data}/facts.jsonl", "batches": 2, "edits_per_step": 5, "model": model_folder} | changes
        path = facts.parent / "suites" / file
        path.parent.mkdir(exist_ok=True)
        shutil.copy(facts, path.parent)
        path.write_text(json.dumps({key: value for key, value in row.items() if value != "left out"}))
        return path

    return write


def test_a_file_of_ones_own_is_a_suite_beside_its_data(suite_file):
    path = suite_file()
    suite = find(str(path))
    assert (suite.name, suite.version, suite.id, suite.is_own) == ("mine", 2, "mine-v2", True)
    assert suite.environment()["dataset"] == f"{path.parent}/facts.jsonl"
    assert find(f"{path}@1").batches == 1
    assert suite.at(None, None).check_fingerprints()["edits"]
    elsewhere = suite.at(None, Path("/elsewhere"))
    assert elsewhere.environment()["dataset"] == "/elsewhere/facts.jsonl"


@pytest.mark.parametrize(
    ("change", "file", "words"),
    [
        ({"batches": "left out"}, "mine.json", r"mine.json: missing fields \['batches'\]"),
        ({"dataset": "left out"}, "mine.json", r"mine.json: missing fields \['dataset'\]"),
        ({"colour": 1}, "mine.json", r"unknown fields \['colour'\]"),
        ({"order": "random"}, "mine.json", "mine.json: order must be one of shuffled, as-is"),
        ({}, "smoke-v1.json", "name: smoke is a suite of the package"),
        ({"name": "a/b"}, "mine.json", "name: 'a/b' must be letters"),
        ({"name": "mine-v3"}, "mine.json", "without a version at its end"),
    ],
)
def test_a_wrong_file_of_ones_own_is_named_with_its_field(suite_file, change, file, words):
    with pytest.raises(ValueError, match=words):
        find(str(suite_file(file, **change)))


def test_what_is_no_suite_says_what_would_be(facts):
    with pytest.raises(FileNotFoundError, match=r"no file nowhere/mine\.json"):
        find("nowhere/mine.json")
    with pytest.raises(ValueError, match="a file of records is given with --edits"):
        find("facts.jsonl")
    with pytest.raises(ValueError, match="do you mean atlas-50x20 or atlas-50x20-v1"):
        find("atlas-50x2")


def test_a_suite_without_a_model_asks_for_one(suite_file):
    suite = find(str(suite_file(model="left out")))
    with pytest.raises(ValueError, match="suite mine leaves the model open: give its folder or hub id with --model"):
        suite.at(None, None)


# -- records ------------------------------------------------------------------------------------------------------


def test_records_are_a_suite_of_whole_batches(facts):
    suite = suite_of("facts.jsonl", "test")
    assert (suite.id, suite.batches, suite.edits_per_step) == ("facts-1x20-v1", 1, 20)
    small = suite_of("own:facts.jsonl", "validation", edits_per_step=2, batches=2)
    assert (small.name, small.dataset) == ("facts-2x2-validation", "own:{data}/facts.jsonl")
    assert small.environment()["dataset"] == f"own:{facts.parent}/facts.jsonl"


def test_records_never_get_the_name_of_a_suite_of_the_package(facts):
    facts.rename("zsre.jsonl")
    shutil.copy("zsre.jsonl", "{odd}.jsonl")
    own.SUITES["zsre-1x20"] = find("smoke")
    try:
        assert suite_of("zsre.jsonl", "test").name == "zsre-1x20-own"
    finally:
        del own.SUITES["zsre-1x20"]
    assert suite_of("{odd}.jsonl", "test").environment()["dataset"].endswith("/{odd}.jsonl")


@pytest.mark.parametrize(
    ("options", "suite", "words"),
    [
        ({}, None, "Give --suite NAME, --suite FILE.json, or --edits FILE"),
        ({"edits": "facts.jsonl"}, "smoke", "give --suite or --edits, not both"),
        ({"batches": 3}, "smoke", "--batches goes with --edits"),
        ({"split": "test"}, "smoke", "--split goes with --edits"),
        ({"edits": "facts.jsonl", "edits_per_step": 99}, None, r"--edits-per-step: .* edits, not 99"),
        ({"edits": "facts.jsonl", "edits_per_step": 0}, None, "--edits-per-step"),
        ({"edits": "facts.jsonl", "batches": 99}, None, "has 1 batches of 20 edits, not 99"),
        ({"edits": "facts.jsonl", "split": "tset"}, None, "unknown split 'tset'"),
        ({"edits": "few.jsonl", "split": "validation"}, None, "A single file is cut by subject"),
        ({"edits": "nothing.jsonl"}, None, "nothing.jsonl"),
    ],
)
def test_options_that_do_not_fit_are_refused(facts, options, suite, words, tmp_path):
    Path("few.jsonl").write_text("".join(f"{line}\n" for line in facts.read_text().splitlines()[:2]))
    with pytest.raises(SystemExit, match=words):
        main(Args(suite, out=tmp_path / "out", own=OwnData(**options), model="atlas", agents=("no-edit",)))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_data_sets_is_not_the_folder_of_the_records(facts, tmp_path):
    arguments = Args(
        out=tmp_path / "out", own=OwnData("facts.jsonl"), data=tmp_path, model="atlas", agents=("no-edit",)
    )
    with pytest.raises(SystemExit, match="--data is the folder of a suite's data sets"):
        main(arguments)


def test_records_that_changed_are_not_mixed_in(facts, model_folder, tmp_path, capsys):
    arguments = Args(
        out=tmp_path / "out", own=OwnData("facts.jsonl", batches=1), model=model_folder, agents=("no-edit",)
    )
    assert main(arguments) == 0
    assert "facts-1x20-v1: 1 x 20 edits of {data}/facts.jsonl, split test" in capsys.readouterr().out
    (record,) = read(tmp_path / "out/results.jsonl")
    assert record.dataset == "{data}/facts.jsonl/test"
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    facts.write_text(facts.read_text().replace("Oslo", "Bonn"))
    with pytest.raises(SystemExit, match=r"made with another fingerprints\.edits"):
        main(arguments)


def test_cells_of_other_default_modules_are_not_mixed_in(facts, model_folder, tmp_path, capsys):
    """Neither suite nor agent names them, and fingerprints are of weights: the model's config decides."""
    shutil.copytree(model_folder, "tiny")
    arguments = Args(out=tmp_path / "out", own=OwnData("facts.jsonl", batches=1), model="./tiny", agents=("no-edit",))
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    (record,) = read(tmp_path / "out/results.jsonl")
    config = json.loads(Path("tiny/config.json").read_text())
    Path("tiny/config.json").write_text(json.dumps(config | {"edited_modules": ["layers.0.mlp.down_proj"]}))
    now = r"now model\.layers\.0\.mlp\.down_proj"
    with pytest.raises(SystemExit, match=rf"another modules \({', '.join(record.modules)}, {now}\)"):
        main(arguments)
    assert main(replace(arguments, modules=tuple(record.modules), out=tmp_path / "named")) == 0
    assert main(replace(arguments, modules=tuple(record.modules), out=tmp_path / "named")) == 0


# -- text ---------------------------------------------------------------------------------------------------------


def test_text_of_ones_own_takes_the_place_of_the_suites(facts, tmp_path):
    Path("wiki.txt").write_text("A river runs.\n")
    suite = OwnData(text=f"{tmp_path}/wiki.txt", drift_text="wiki.txt")
    placed = find("real-counterfact-50x20").at(None, tmp_path, text=suite.text, drift_text=suite.drift_text)
    assert placed.in_data(placed.text) == f"{tmp_path}/wiki.txt"
    assert (placed.setting()["text"], placed.setting()["drift_text"]) == ("wiki.txt", "wiki.txt")
    plain = find("real-counterfact-50x20").at(None, tmp_path)
    assert plain.setting()["text"] == "wise:{data}/wise/hallucination-edit.json"


def test_fingerprints_of_texts_are_those_of_their_bytes_and_are_checked(facts, model_folder):
    text = Path("wiki.txt")
    text.write_text("A river runs.\n")
    suite = suite_of("facts.jsonl", "test").at(model_folder, None, text="wiki.txt")
    fingerprints = suite.check_fingerprints()
    # printf 'A river runs.\n' | sha256sum
    assert fingerprints["text"] == "81ec757998b2dc2f72f6779a186e09dfebd1a466702ee3106e5e7d78604b8a68"
    assert "drift_text" not in fingerprints
    pinned = replace(suite, text_fingerprint=fingerprints["text"])
    assert pinned.check_fingerprints() == fingerprints
    assert "text_fingerprint" not in pinned.setting(), "a record says it once"
    text.write_text("A river ran.\n")
    with pytest.raises(ValueError, match="is about text with fingerprint"):
        pinned.check_fingerprints()
    text.unlink()
    with pytest.raises(FileNotFoundError, match=r"text: there is no file wiki\.txt"):
        pinned.check_fingerprints()
    assert text_fingerprint("wikimedia/wikipedia:20231101.en") is None
    Path("statistics").mkdir()
    before = text_fingerprint("statistics")
    Path("statistics/covariance.json").write_text("{}")
    assert text_fingerprint("statistics") != before


# -- a method of one's own ----------------------------------------------------------------------------------------


def test_a_class_of_ones_own_takes_settings(facts, mine):
    assert make_method("mine.py:Mine", {"step": 2.0}).step == 2.0
    with pytest.raises(ValueError, match="Mine has no setting 'stepp'; known are step"):
        make_method("mine.py:Mine", {"stepp": 2.0})
    Path("chosen").mkdir()
    Path("chosen/Mine.json").write_text(
        json.dumps({"settings": {"step": 3.0}, "environment": {"modules": ["layers.1.mlp.down_proj"]}})
    )
    agent = make_agent("mine.py:Mine@./chosen")
    assert agent.step == 3.0
    assert agent.environment == environment_of("mine.py:Mine@./chosen") == {"modules": ["layers.1.mlp.down_proj"]}
    settings = settings_of("mine.py:Mine@./chosen", agent)
    assert settings["source"] == settings_of("mine.py:Mine", make_agent("mine.py:Mine"))["source"]
    with pytest.raises(FileNotFoundError, match=r"no settings of 'Mine' in './other'"):
        make_agent("mine.py:Mine@./other")


@pytest.fixture
def search(facts, mine, model_folder, monkeypatch):
    """A search on records, each trial of which counts its step."""
    figures = lambda suite, agent, *rest: dict.fromkeys(("efficacy", "generalization", "specificity"), agent.step)  # noqa: E731
    monkeypatch.setattr(tune, "teacher_forced_after", figures)
    return tune.Args(
        methods=("mine.py:Mine",),
        out=Path("trials"),
        trials=4,
        own=OwnData("facts.jsonl"),
        model=model_folder,
        spaces="spaces.json",
        settings="./chosen",
        write=True,
    )


def test_a_class_of_ones_own_is_tuned_on_the_validation_part(search, capsys):
    tune.main(search)
    trials = [json.loads(line) for line in Path("trials/Mine.jsonl").read_text().splitlines()]
    assert trials[0]["settings"] == {"step": 0.5}, "what the constructor says"
    best = max(trial["settings"]["step"] for trial in trials)
    written = json.loads(Path("chosen/Mine.json").read_text())
    assert written["settings"] == {"step": best}
    assert "4 trials of facts-1x" in written["chosen"]
    assert "-validation-v1 with model" in written["chosen"]
    assert "the row mine.py:Mine@./chosen of benchmarks.run" in capsys.readouterr().out
    Path("mine.py").write_text(MINE + "    # changed\n")
    with pytest.raises(SystemExit, match="choose another --out"):
        tune.main(search)


@pytest.mark.parametrize(
    ("change", "spaces", "words"),
    [
        ({"spaces": "atlas"}, None, "'Mine' has no search space in .*atlas.json"),
        ({"settings": "atlas"}, None, r"is a folder of the package: give one of your own, such as \./mine"),
        ({"methods": ("other.py:Mine",)}, None, "there is no file other.py"),
        ({"own": OwnData("facts.jsonl", split="test")}, None, "choices are never made on the test split"),
        ({"own": OwnData("facts.jsonl", split="all")}, None, "is of split all"),
        ({}, {"Mine": {"stepp": [0.1, 1.0]}}, "has no setting 'stepp'"),
        ({}, {"Mine": {"step": [0.0, 1.0]}}, r"spaces.json: Mine.step must be \[LOWEST, HIGHEST\], numbers above 0"),
        ({}, {"Mine": {"step": 3}}, "spaces.json: Mine.step must be"),
        ({}, {"Other": {}}, "'Mine' has no search space in spaces.json; there are Other"),
        ({}, [], "'Mine' has no search space in spaces.json; there are none"),
    ],
)
def test_a_search_that_cannot_be_made_says_why_before_anything_is_run(search, change, spaces, words):
    if spaces is not None:
        Path("spaces.json").write_text(json.dumps(spaces))
    with pytest.raises(SystemExit, match=words):
        tune.main(replace(search, **change))
    assert not Path("trials").exists()
    assert not Path("chosen").exists()


def test_a_record_of_ones_own_suite_is_validated_with_what_it_was_made_of(facts, model_folder, capsys):
    made = {"own": OwnData("facts.jsonl", batches=1), "model": model_folder}
    assert main(Args(out=Path("out"), agents=("no-edit",), keep_deltas=True, **made)) == 0
    assert validate.main(validate.Args(Path("out"), **made)) == 0
    capsys.readouterr()
    assert validate.main(validate.Args(Path("out"), model=model_folder)) == 1
    assert "with --suite FILE.json or --edits" in capsys.readouterr().out


def test_every_option_of_ones_own_data_is_explained():
    explained = re.findall(r"^    (\w+): .", inspect.getdoc(own.OwnData), re.MULTILINE)
    assert explained == [field.name for field in fields(own.OwnData)]


def test_a_suite_made_in_code_stays_as_it_was():
    suite = Suite("tiny", batches=2, edits_per_step=3, model="atlas")
    assert suite.at("other", None).model == "other"
    assert "text" not in suite.setting()
