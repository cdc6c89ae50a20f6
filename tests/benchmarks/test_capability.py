import json
import math
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from benchmarks import capability
from benchmarks.capability import Args, main, random_state_kept, score, task_manager
from benchmarks.capability_report import as_markdown, chart, draw, points, read, starts_as_markdown
from editenv.contexts import CONTEXT, Context
from editenv.data import load_edits
from editenv.memories import Memory

WORDS = ("tin", "fog", "a jazz club", "the long road to Rome", "so so", "Peru", "an old harbour", "nine chess players")
PAIRS = [
    {"sentence1": f"It is {word}.", "sentence2": f"There is {other}."}
    for word, other in zip(WORDS, WORDS[::-1], strict=True)
]
RECORDS = {
    "sst2": [{"sentence": f"{word} ", "label": i % 2} for i, word in enumerate(WORDS)],
    "mrpc": [pair | {"label": i % 2} for i, pair in enumerate(PAIRS)],
    "cola": [{"sentence": word, "label": i // 4} for i, word in enumerate(WORDS)],
    "rte": [pair | {"label": i % 2} for i, pair in enumerate(PAIRS)],
    "nli": [pair | {"label": ("not_entailment", "entailment")[i % 2]} for i, pair in enumerate(PAIRS)],
    "mmlu": [{"question": f"{w}?", "choices": [w, "x", "y z", "1"], "answer": i % 4} for i, w in enumerate(WORDS)],
}
# A prompt of about 700 tokens where the model has room for 256.
RECORDS["sst2"][3]["sentence"] = "a rather long and winding story about nothing " * 60


def by_hand(task, record):
    """Prompt, answers and the right one, written out without a template."""
    if task == "sst2":
        text = f"Review: {record['sentence'].strip()}\nIs this review negative or positive?\nAnswer:"
        return text, ["negative", "positive"], record["label"]
    if task == "cola":
        text = f"Sentence: {record['sentence']}\nIs this sentence correct English, yes or no?\nAnswer:"
        return text, ["no", "yes"], record["label"]
    if task == "mmlu":
        listed = "".join(f"{letter}. {c}\n" for letter, c in zip("ABCD", record["choices"], strict=True))
        return (
            f"Question: {record['question']}\n{listed}Which of A, B, C and D is right?\nAnswer:",
            list("ABCD"),
            record["answer"],
        )
    first, second = record["sentence1"], record["sentence2"]
    if task == "mrpc":
        text = f"First: {first}\nSecond: {second}\nDo both say the same, yes or no?\nAnswer:"
        return text, ["no", "yes"], record["label"]
    text = f"Text: {first}\nClaim: {second}\nDoes the claim follow from the text, yes or no?\nAnswer:"
    entailed = record["label"] in (0, "entailment")
    return text, ["yes", "no"], 0 if entailed else 1


@torch.no_grad()
def choice(lm, text, answers):
    """The answer with the largest log-likelihood; texts that are too long lose their beginning."""
    log_likelihoods = []
    for answer in answers:
        tokens = lm.tokenizer(f"{text} {answer}")["input_ids"]
        length = len(tokens) - len(lm.tokenizer(text)["input_ids"])
        ids = torch.tensor([tokens[-257:]])
        log_probabilities = lm.model(input_ids=ids[:, :-1], use_cache=False).logits[0].log_softmax(-1)
        log_likelihoods.append(sum(log_probabilities[-length + j, ids[0, -length + j]].item() for j in range(length)))
    return log_likelihoods.index(max(log_likelihoods))


def figures_by_hand(golds, predictions):
    """Accuracy, its standard error and macro-averaged F1, from counts."""
    right = [g == c for g, c in zip(golds, predictions, strict=True)]
    accuracy = sum(right) / len(right)
    f1 = []
    for label in sorted({*golds, *predictions}):
        hits = sum(g == c == label for g, c in zip(golds, predictions, strict=True))
        f1.append(2 * hits / (Counter(golds)[label] + Counter(predictions)[label]))
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / (len(right) - 1)), sum(f1) / len(f1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    for task, records in RECORDS.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_figures_are_those_of_the_log_likelihoods(make_lm, data):
    """Before and after the weights were changed in place, for every task."""
    lm = make_lm()
    manager = task_manager(capability.GLUE_TASKS, data)
    tokenizer_before = lm.tokenizer.pad_token
    torch.manual_seed(0)
    seen = []
    for scale in (0.0, 3.0):
        for name in lm.modules:
            lm.apply({name: scale * torch.randn(lm.shape(name))})
        weights = lm.snapshot()
        scores = score(lm, capability.GLUE_TASKS, manager, data, limit=None, batch_size=3)
        for task, records in RECORDS.items():
            golds, predictions = [], []
            for record in records:
                text, answers, gold = by_hand(task, record)
                golds.append(gold)
                predictions.append(choice(lm, text, answers))
            accuracy, error, f1 = figures_by_hand(golds, predictions)
            expected = {"acc": accuracy, "acc_stderr": error, "f1": f1, "f1_stderr": None, "records": len(records)}
            expected["chance"] = max(Counter(golds).values()) / len(golds)  # always the same answer
            assert scores[task] == pytest.approx(expected), task
            seen.append(tuple(predictions))
        assert all(torch.equal(weight, weights[name]) for name, weight in lm.snapshot().items())
    assert len(set(seen)) > 4  # not one answer for everything
    assert lm.tokenizer.pad_token == tokenizer_before


def test_a_context_is_put_before_the_prompts(make_lm, data):
    """Before the one record whose sentence is a key; what lm-eval then generates is what plain transformers does."""
    lm = make_lm()
    record = RECORDS["sst2"][2]
    text, answers, _ = by_hand("sst2", record)
    before = "Review: a jazz club\nAnswer: positive\n"
    lm.apply({CONTEXT: Context({record["sentence"]: before}, threshold=0.9)})
    asked = capability.asked_by_lm_eval(lm, 2)
    pairs = [
        (Instance("loglikelihood", {}, (prompt, f" {answer}"), i), prompt, answer)
        for i, prompt in enumerate((text, before + text))
        for answer in answers
    ]
    scores = [score for score, _ in asked.loglikelihood([request for request, *_ in pairs], disable_tqdm=True)]
    lm.restore()
    plain = capability.asked_by_lm_eval(lm, 2)
    by_plain = [score for score, _ in plain.loglikelihood([request for request, *_ in pairs], disable_tqdm=True)]
    assert scores[:2] == pytest.approx(by_plain[2:], abs=1e-4)
    assert scores[:2] != pytest.approx(by_plain[:2], abs=1e-2)
    until = {"until": ["\n"], "max_gen_toks": 6}
    requests = [Instance("generate_until", {}, (prompt, until), i) for i, prompt in enumerate((text, before + text))]
    expected = plain.generate_until(requests, disable_tqdm=True)[1]
    lm.apply({CONTEXT: Context({record["sentence"]: before}, threshold=0.9)})
    assert asked.generate_until(requests[:1], disable_tqdm=True) == [expected]
    assert "generate" not in vars(lm.model)


def test_weights_for_questions_with_a_text_are_asked_about_those_alone(make_lm, data):
    """Of two prompts of one batch, one has a text before it: it is scored by the sum of the weights, the other as ever."""
    lm = make_lm()
    (name,) = lm.modules
    texts, answers, _ = zip(*(by_hand("sst2", record) for record in RECORDS["sst2"][1:3]), strict=True)
    before = "Review: a jazz club\nAnswer: positive\n"
    matrix = 0.3 * torch.randn(1, *lm.shape(name), generator=torch.Generator().manual_seed(0))

    def scored(prompts):
        pairs = [(prompt, f" {answer}") for prompt, own in zip(prompts, answers, strict=True) for answer in own]
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        return [score for score, _ in capability.asked_by_lm_eval(lm, 8).loglikelihood(requests, disable_tqdm=True)]

    unedited = scored(texts)
    lm.apply({name: matrix[0]})
    summed = scored([texts[0], before + texts[1]])
    lm.restore()
    memory = Memory("context", torch.zeros(1, 0), matrix, torch.zeros(1))
    lm.apply({name: memory, CONTEXT: Context({RECORDS["sst2"][2]["sentence"]: before}, threshold=0.9)})
    own = len(answers[0])
    assert scored(texts) == pytest.approx(unedited[:own] + summed[own:], abs=1e-4)
    assert summed[:own] != pytest.approx(unedited[:own], abs=1e-2)


def test_limit_takes_the_first_records(make_lm, data):
    lm = make_lm()
    scores = score(lm, ["cola"], task_manager(["cola"], data), data, limit=3, batch_size=8)["cola"]
    golds, predictions = [], []
    for record in RECORDS["cola"][:3]:
        text, answers, gold = by_hand("cola", record)
        golds.append(gold)
        predictions.append(choice(lm, text, answers))
    assert scores["records"] == 3
    assert scores["acc"] == pytest.approx(figures_by_hand(golds, predictions)[0])


def test_scoring_leaves_the_random_generators_alone():
    def drawn():
        import random

        import numpy as np

        return random.random(), np.random.rand(), torch.rand(1).item()

    states = [torch.get_rng_state()]
    with random_state_kept():
        first = drawn()
        torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert drawn() == first


AGENT = """
import torch
from agents.base import Agent

class Drawing(Agent):
    actions_per_batch = 2
    looks_at_model = True

    def prepare(self, env, seed, progress):
        assert env.split == "train"
        torch.manual_seed(seed)

    def act(self, observation, info):
        if info["batch"] == 2 and info["attempt"] == 0:
            return {name: torch.full(self.lm.shape(name), float("nan")) for name in self.lm.modules}
        return {name: torch.randn(self.lm.shape(name)) for name in self.lm.modules}

    def begin(self, env):
        self.lm = env.language_model
"""


@pytest.fixture
def arguments(tmp_path, model_folder, data, monkeypatch, edits):
    monkeypatch.setattr("editenv.env.load_edits", lambda *_, **__: list(edits))
    (tmp_path / "drawing.py").write_text(AGENT)
    return Args(
        at=(0, 2, 8),
        out=tmp_path / "out",
        agent=f"{tmp_path}/drawing.py:Drawing",
        model=model_folder,
        modules=("layers.2.mlp.down_proj",),
        edits_per_step=2,
        data=data,
        tasks=("sst2", "mmlu"),
    )


def test_a_run_is_resumed_to_the_same_records(arguments, monkeypatch, capsys):
    """Although the agent draws from a generator that lm-eval seeds, and at other counts than the first time."""
    main(arguments)
    results = arguments.out / "capability.jsonl"
    whole = results.read_text()
    records = read(results)
    assert [record.edits for record in records] == [0, 2, 8]
    assert [record.failures for record in records] == [0, 0, 2]
    assert len({json.dumps(record.tasks) for record in records}) > 1
    assert records[0].setting.data == "records"
    assert str(arguments.data) not in json.dumps(asdict(records[0].setting))
    assert (arguments.out / "capability.png").stat().st_size > 1000
    assert capsys.readouterr().out.count("Drawing |") == 3

    lines = whole.splitlines(keepends=True)
    results.write_text(lines[0] + lines[1])  # a kill before the last count
    main(arguments)
    assert results.read_text() == whole

    monkeypatch.setattr(capability, "run", lambda *_: pytest.fail("everything is there"))
    main(arguments)
    main(replace(arguments, at=(2,)))
    assert results.read_text() == whole


def test_another_setting_needs_another_folder(arguments):
    results = arguments.out / "capability.jsonl"
    main(replace(arguments, at=(0,)))
    before = results.read_bytes()
    with pytest.raises(SystemExit, match="made with limit None, not 3"):
        main(replace(arguments, limit=3))
    assert results.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"at": (0, 3)}, "--at 3: not a multiple of edits_per_step, 2"),
        ({"at": (-2,)}, "--at -2"),
        ({"at": (0, 12)}, "--at 12: .* ends after 10 edits"),
        ({"tasks": ("sst2", "qqp")}, "unknown task 'qqp': .* sst2, mrpc"),
        ({"data": Path("nowhere")}, "no file nowhere/sst2.jsonl"),
        ({"data": None, "tasks": None}, "--tasks"),
        ({"data": None, "tasks": ("real",)}, "--tasks real: .* --data"),
        ({"tasks": ("facts",)}, "no file .*facts.csv.* which the task facts reads"),
        ({"agent": "nobody"}, "unknown agent 'nobody'"),
        ({"limit": 0}, "--limit"),
    ],
)
def test_wrong_arguments_end_the_command(arguments, change, named):
    with pytest.raises(SystemExit, match=named):
        main(replace(arguments, **change))
    assert not (arguments.out / "capability.jsonl").exists()


def test_a_name_that_lm_eval_does_not_know_is_unknown(arguments, monkeypatch):
    class Manager:
        all_subtasks, all_groups = ("mrpc",), ("mmlu",)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
    with pytest.raises(SystemExit, match="unknown task 'qqq'"):
        main(replace(arguments, data=None, tasks=("mrpc", "mmlu", "qqq")))


def test_without_lm_eval_the_extra_is_named(arguments, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.models.huggingface", None)
    with pytest.raises(SystemExit, match=r'pip install "lifelongedit\[capability\]"'):
        main(arguments)


SETTINGS_WITH_A_PLACE = {
    "settings": {"learning_rate": 0.01, "steps": 2},
    "chosen": "by hand",
    "environment": {"modules": ["layers.1.mlp.down_proj"], "observed_tokens": "all"},
}


def test_settings_name_where_a_row_edits_unless_the_command_does(arguments, monkeypatch, tmp_path):
    (tmp_path / "fine-tune.json").write_text(json.dumps(SETTINGS_WITH_A_PLACE))
    environments = []

    class Environment(capability.LifelongEditEnv):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            environments.append(self)

    monkeypatch.setattr(capability, "LifelongEditEnv", Environment)
    row = replace(arguments, agent=f"fine-tune@{tmp_path}/", at=(0, 2), tasks=("cola",), modules=None)
    main(row)
    assert len(environments) == 2  # the stream's, and the one to prepare on
    for env in environments:
        assert list(env.language_model.modules) == ["model.layers.1.mlp.down_proj"]
        assert env.observed_tokens == "all"
    record, _ = read(arguments.out / "capability.jsonl")
    assert record.setting.modules is None
    assert record.made_with["settings"]["environment"] == SETTINGS_WITH_A_PLACE["environment"]

    environments.clear()
    main(replace(row, modules=("layers.2.mlp.down_proj",), out=tmp_path / "other"))
    assert [list(env.language_model.modules) for env in environments] == [["model.layers.2.mlp.down_proj"]] * 2


def test_observed_tokens_are_those_of_the_command(arguments, monkeypatch):
    observed = []
    made = capability.LifelongEditEnv
    monkeypatch.setattr(
        capability, "LifelongEditEnv", lambda **kwargs: observed.append(kwargs.get("observed_tokens")) or made(**kwargs)
    )
    main(replace(arguments, agent="no-edit", at=(0,), tasks=("cola",), observed_tokens="all"))
    assert observed == ["all", "all"]
    with pytest.raises(SystemExit, match="made with observed_tokens 'all', not 'answers'"):
        main(replace(arguments, agent="no-edit", at=(0,), tasks=("cola",)))


@pytest.fixture
def of_a_suite(arguments, model_folder, tmp_path, monkeypatch):
    """Makes the command's arguments for a suite of its own, in the order of its file."""
    monkeypatch.setattr("editenv.env.load_edits", load_edits)
    names = [f"Wenn{n}" for n in range(90)]
    facts = [{"prompt": f"The river {name} flows through", "target": f"Ham {name}", "subject": name} for name in names]
    facts.append(facts[0] | {"target": "Ulm"})  # contradicts another: refused, if no option says so
    (arguments.data / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))

    def made(**changes):
        suite = {
            "name": "rivers",
            "batches": 3,
            "edits_per_step": 2,
            "model": model_folder,
            "modules": ["layers.1.mlp.down_proj"],
            "dataset": "{data}/facts.jsonl",
            "split": "validation",
            "options": {"bad_records": "skip"},
            "order": "as-is",
        }
        (tmp_path / "rivers.json").write_text(json.dumps(suite | changes))
        defaults = {"model": "atlas", "modules": None, "edits_per_step": 20}
        return replace(arguments, suite=str(tmp_path / "rivers.json"), at=(0, 6), tasks=("cola",), **defaults)

    return made


def test_a_suite_brings_its_model_its_records_and_its_order(of_a_suite, monkeypatch):
    made, streams = capability.LifelongEditEnv, []

    class Environment(made):
        def reset(self, **options):
            result = super().reset(**options)
            streams.append((self.split, [edit.subject for edit in self.stream[:6]], list(self.language_model.modules)))
            return result

    monkeypatch.setattr(capability, "LifelongEditEnv", Environment)
    arguments = of_a_suite()
    main(arguments)
    validation, *_ = streams
    in_file = [f"Wenn{n}" for n in range(90)]
    assert validation[0] == "validation"
    assert validation[1] == sorted(validation[1], key=in_file.index)
    assert validation[2] == ["model.layers.1.mlp.down_proj"]
    record, last = read(arguments.out / "capability.jsonl")
    assert (record.edits, last.edits) == (0, 6)
    assert (record.setting.suite, record.setting.dataset) == ("rivers-v1", "{data}/facts.jsonl")
    assert record.setting.edits_per_step == 2
    assert len(record.made_with["training"]) == 64
    assert str(arguments.data) not in json.dumps(asdict(record))


@pytest.mark.parametrize(
    ("suite", "change", "named"),
    [
        ({}, {"split": "train"}, "--suite .*rivers.json says it already: leave out --split"),
        ({}, {"modules": ("layers.1.mlp.down_proj",)}, "leave out --modules"),
        ({}, {"at": (0, 3)}, "--at 3: not a multiple of edits_per_step, 2"),
        ({}, {"at": (0, 8)}, "--at 8: rivers-v1 makes 6 edits"),
        ({"options": {}}, {}, "contradicts"),
        ({"edits_fingerprint": "0" * 64}, {}, "rivers-v1 is about edits with fingerprint 000000000000"),
        ({"max_actions_per_batch": 1}, {}, "takes 2 actions per batch; suite rivers-v1 allows 1"),
    ],
)
def test_what_does_not_fit_a_suite_ends_the_command(of_a_suite, suite, change, named):
    arguments = replace(of_a_suite(**suite), **change)
    with pytest.raises(SystemExit, match=named):
        main(arguments)
    assert not (arguments.out / "capability.jsonl").exists()


def test_a_group_stands_for_its_tasks_each_once(arguments):
    def tasks(*named):
        return capability.setting_of(replace(arguments, tasks=named or None), capability.stream(arguments)).tasks

    assert tasks("cola", "glue") == ["cola", "sst2", "mrpc", "rte", "nli", "mmlu"]
    assert tasks("real") == list(capability.GROUPS["real"])
    assert tasks() == list(capability.GLUE_TASKS)


def sample(target, *choices):
    return {"target": target, "arguments": [("Question:", f" {choice}") for choice in choices]}


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([sample(0, "no", "yes"), sample(0, "no", "yes"), sample(1, "no", "yes")], 2 / 3),  # who always says no
        ([sample("no", "no", "yes"), sample("yes", "no", "yes")], 1 / 2),
        ([sample(0, "a", "b"), sample(0, "c", "d", "e", "f")], (1 / 2 + 1 / 4) / 2),  # a position is not seen
        ([sample([0, 2], "a", "b", "c"), sample([1], "a", "b", "c")], (2 / 3 + 1 / 3) / 2),
        # As in WinoGrande the choices are in the prompts, and all have one ending.
        ([{"target": 1, "arguments": [("He", " is in."), ("She", " is in.")]}] * 3, 1 / 2),
    ],
)
def test_chance_is_the_best_guess_without_reading(samples, expected):
    assert capability.chance(samples) == pytest.approx(expected)


def a_record(agent, seed, edits, accuracy, **figures):
    setting = capability.Setting(
        "m", "float32", None, "d", "test", None, "d", 20, ["sst2", "else"], "glue", None, "0.4"
    )
    tasks = {
        "sst2": {"acc": accuracy, "acc_stderr": 0.02, "f1": accuracy / 2, "f1_stderr": None, "records": 10},
        "else": {"mcc": -0.25, "mcc_stderr": None, "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1}
        | figures,
    }
    return capability.Capability(agent, seed, edits, 0, setting, tasks)


def test_table_holds_means_over_seeds():
    records = [a_record("a", 0, 0, 0.8), a_record("a", 0, 20, 0.6), a_record("a", 1, 20, 0.5), a_record("b", 0, 0, 0.1)]
    mean, error, seeds = points(records, "a", "sst2", "acc")[20]
    assert (mean, error, seeds) == (pytest.approx(55.0), pytest.approx(2.0), 2)
    headings, _, *rows = as_markdown(records).splitlines()
    assert headings == "| agent | edits | seeds | sst2 acc | sst2 f1 | else mcc | else exact_match,strict |"
    assert rows == [
        "| a | 0 | 1 | 80.0 ± 2.0 | 40.0 | -25.0 | 50.0 ± 10.0 |",
        "| a | 20 | 2 | 55.0 ± 2.0 | 27.5 | -25.0 | 50.0 ± 10.0 |",
        "| b | 0 | 1 | 10.0 ± 2.0 | 5.0 | -25.0 | 50.0 ± 10.0 |",
    ]


def starting(**tasks):
    record = a_record("a", 0, 0, 0.8)
    names = list(tasks)
    return replace(record, setting=replace(record.setting, tasks=names), tasks=tasks)


def test_a_task_near_chance_is_marked():
    four = {"acc_norm": 0.34, "acc_norm_stderr": 0.03, "records": 250, "chance": 0.25}  # at 3 exactly
    two = {"acc": 0.558, "acc_stderr": 0.02, "f1": 0.5, "f1_stderr": None, "records": 600, "chance": 0.5}
    perfect = {"acc": 1.0, "acc_stderr": 0.0, "records": 50, "chance": 0.5}
    older = {"acc": 0.9, "acc_stderr": 0.01, "records": 50}
    below = {"acc": 0.2, "acc_stderr": 0.03, "records": 50, "chance": 0.5}
    records = [starting(four=four, two=two, perfect=perfect, older=older, below=below)]
    assert starts_as_markdown(records).splitlines()[2:] == [
        "| four | acc_norm | 250 | 25.0 | 34.0 | 3.0 | 3.0 | can be seen |",
        "| two | acc | 600 | 50.0 | 55.8 | 2.0 | 2.9 | cannot be seen: below 3 |",
        "| perfect | acc | 50 | 50.0 | 100.0 | 0.0 | inf | can be seen |",
        "| below | acc | 50 | 50.0 | 20.0 | 3.0 | -10.0 | cannot be seen: below 3 |",
    ]
    titles = [panel.title for panel in chart(records).panels]
    assert titles == [
        *("four: acc_norm", "two: acc (at chance)", "two: f1 (at chance)", "perfect: acc", "older: acc"),
        "below: acc (at chance)",
    ]
    assert "chance" not in as_markdown(records)


def test_a_task_that_one_accuracy_shows_above_chance_is_not_marked():
    both = {"acc": 0.3, "acc_stderr": 0.03, "acc_norm": 0.5, "acc_norm_stderr": 0.03, "records": 250, "chance": 0.25}
    assert [panel.title for panel in chart([starting(both=both)]).panels] == ["both: acc", "both: acc_norm"]


def test_without_the_unedited_model_nothing_is_said_of_chance():
    assert "--at 0" in starts_as_markdown([a_record("a", 0, 20, 0.8)])


def test_older_records_are_read(tmp_path):
    row = asdict(a_record("a", 0, 0, 0.5))
    del row["setting"]["observed_tokens"], row["made_with"]
    path = tmp_path / "capability.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert read(path)[0].setting.observed_tokens == "answers"


def test_the_figure_shows_each_agents_curve(tmp_path):
    from matplotlib import image

    path = tmp_path / "capability.png"
    records = [a_record("a", 0, edits, 0.9 - edits / 100) for edits in (0, 20, 40)]
    draw(records, path)
    alone = image.imread(path)
    draw([*records, *(a_record("b", 0, edits, 0.2) for edits in (0, 20, 40))], path)
    both = image.imread(path)
    assert alone.shape == both.shape
    assert (alone != both).any(-1).sum() > 500
    assert [file.name for file in tmp_path.iterdir()] == ["capability.png"]


def test_what_is_no_record_is_refused_with_its_line(tmp_path):
    path = tmp_path / "capability.jsonl"
    capability.append(path, a_record("a", 0, 0, 0.5))
    assert read(path) == [a_record("a", 0, 0, 0.5)]
    path.write_text(path.read_text() + '{"agent": "a"}\n')
    with pytest.raises(ValueError, match=r"capability.jsonl, line 2"):
        read(path)
