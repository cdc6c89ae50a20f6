import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tyro
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from agents.covariance import (
    Args,
    collect,
    covariance_of,
    effective_dimension,
    key_covariance,
    load_covariance,
    main,
    read_texts,
    sample_text,
)
from editenv.data import load_edits
from editenv.language_model.editable_lm import EditableLM

TEXTS = ["Ada is in Rome", "Tea", "So, people find the Long River in Ecuador and in Peru", "Who saw Kepler? Oslo"]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("modules", [["layers.2.mlp.down_proj"], ["layers.0.mlp.up_proj", "layers.2.self_attn.o_proj"]])
def test_covariance_is_the_second_moment_of_the_modules_inputs(base, tokenizer, modules, bos):
    lm = EditableLM(base, tokenizer, modules)
    expected = {name: torch.zeros(lm.shape(name)[0], lm.shape(name)[0]) for name in lm.modules}
    count = 0
    for text in TEXTS:
        inputs = {}

        def keep(module, args, into=inputs):
            into[module] = args[0]

        handles = [base.get_submodule(name).register_forward_pre_hook(keep) for name in lm.modules]
        ids = tokenizer(text)["input_ids"]
        base(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        for name in lm.modules:
            for token in inputs[base.get_submodule(name)][0, 0 if bos else 1 :]:
                expected[name] += torch.outer(token, token)
        count += len(ids) - (not bos)
    lm.apply({name: torch.randn(lm.shape(name)) for name in lm.modules})
    for batch_size in (128, 1, 3):
        covariance = key_covariance(lm, TEXTS, batch_size, bos)
        for name in lm.modules:
            torch.testing.assert_close(covariance[name], expected[name] / count, rtol=1e-4, atol=1e-5)


def test_layers_above_the_last_edited_one_are_not_run(base, tokenizer):
    lm = EditableLM(base, tokenizer, ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"])
    calls = []
    handle = base.get_submodule("model.layers.2").register_forward_pre_hook(lambda *_: calls.append(1))
    covariance = key_covariance(lm, TEXTS, batch_size=2)
    handle.remove()
    assert not calls
    assert all(matrix.any() for matrix in covariance.values())


def test_every_token_counts_where_the_tokenizer_adds_no_bos(base, tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    lm = EditableLM(base, bare, ["layers.2.mlp.down_proj"])
    (name,) = lm.modules
    rows = []
    handle = base.get_submodule(name).register_forward_pre_hook(lambda _, args: rows.append(args[0][0]))
    for text in TEXTS:
        ids = bare(text)["input_ids"]
        assert ids[0] != tokenizer.bos_token_id
        base(torch.tensor([ids]))
    handle.remove()
    keys = torch.cat(rows)
    torch.testing.assert_close(key_covariance(lm, TEXTS)[name], keys.T @ keys / len(keys), rtol=1e-4, atol=1e-5)


def test_effective_dimension():
    assert effective_dimension(torch.eye(7)) == pytest.approx(7)
    assert effective_dimension(torch.ones(5, 5)) == pytest.approx(1)
    assert effective_dimension(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(16 / 10)


def test_sampled_text_is_true_and_from_the_training_split():
    texts = sample_text(load_edits("atlas", "train"), 200)
    assert texts == sample_text(load_edits("atlas", "train"), 200)
    assert len(texts) == 200
    true = set()
    for edit in load_edits("atlas", "train"):
        true |= {f"{text} {edit.old_answer}" for text in (edit.prompt, *edit.rephrases)}
        true |= {f"{item.prompt} {item.answer}" for item in edit.locality}
    assert set(texts) <= true


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{text} {i}\n" for i in range(10) for text in TEXTS), encoding="utf-8")
    return str(path)


def test_collected_in_portions_is_the_same_as_at_once_and_an_interrupted_run_ends_in_the_same_bits(
    make_lm, text_file, tmp_path
):
    lm = make_lm()
    (name,) = lm.modules
    whole = collect(lm, text_file, tmp_path / "whole", samples=40, portion=8)
    torch.testing.assert_close(
        whole.covariance()[name], key_covariance(lm, list(read_texts(text_file)), bos=True)[name]
    )

    class StopError(Exception):
        pass

    def stop(done):
        if done >= 16:
            raise StopError

    with pytest.raises(StopError):
        collect(lm, text_file, tmp_path / "parts", samples=40, progress=stop, portion=8)
    with pytest.raises(ValueError, match="interrupted after 16 texts"):
        load_covariance(lm, tmp_path / "parts")
    parts = collect(lm, text_file, tmp_path / "parts", samples=40, portion=8)
    assert parts.texts == whole.texts == 40
    assert parts.tokens == whole.tokens
    assert torch.equal(parts.sums[name], whole.sums[name])
    assert torch.equal(load_covariance(lm, tmp_path / "parts")[name], whole.covariance()[name])
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) == 1


def test_an_agent_gets_the_same_covariance_from_a_text_and_from_its_statistics(
    make_lm, text_file, tmp_path, monkeypatch
):
    lm = make_lm()
    (name,) = lm.modules
    env = SimpleNamespace(language_model=lm)
    monkeypatch.setattr("agents.covariance.PORTION", 16)
    progress = []
    covariance = covariance_of(env, text_file, 40, lambda what, done, total: progress.append((done, total)))[name]
    torch.testing.assert_close(covariance, key_covariance(lm, list(read_texts(text_file)), bos=True)[name])
    assert progress == [(0, 40), (16, 40), (32, 40), (40, 40)]
    collect(lm, text_file, tmp_path / "stats", samples=40, portion=16)
    assert torch.equal(covariance_of(env, str(tmp_path / "stats"), 40)[name], covariance)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.txt: has no text"):
        covariance_of(env, str(tmp_path / "empty.txt"), 40)


def test_statistics_of_something_else_are_refused(make_lm, text_file, tmp_path):
    lm = make_lm()
    collect(lm, text_file, tmp_path / "stats", samples=8)
    with pytest.raises(ValueError, match="modules is"):
        collect(make_lm("layers.1.mlp.down_proj"), text_file, tmp_path / "stats", samples=8)
    with pytest.raises(ValueError, match="other weights or other edited modules"):
        load_covariance(make_lm("layers.1.mlp.down_proj"), tmp_path / "stats")
    with pytest.raises(FileNotFoundError, match=r"agents\.covariance"):
        load_covariance(lm, tmp_path / "nothing")
    other = make_lm()
    other.model.get_input_embeddings().weight = torch.nn.Parameter(other.model.get_input_embeddings().weight + 1e-3)
    with pytest.raises(ValueError, match="other weights or other edited modules"):  # keys come from the layers below
        load_covariance(other, tmp_path / "stats")
    with pytest.raises(ValueError, match="frozen is"):
        collect(other, text_file, tmp_path / "stats", samples=8)
    record = json.loads((tmp_path / "stats/covariance.json").read_text())
    assert record["texts"] == 8
    sums = tmp_path / "stats" / record["file"]
    sums.write_bytes(sums.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="is not the file that"):
        load_covariance(lm, tmp_path / "stats")


@pytest.mark.parametrize("entry", ["tokens", "texts", "finished", "read_sha256", "file"])
def test_a_changed_entry_of_the_record_is_noticed(make_lm, text_file, tmp_path, entry):
    folder = tmp_path / "stats"
    collect(make_lm(), text_file, folder, 5)
    path = folder / "covariance.json"
    record = json.loads(path.read_text())
    as_written = path.read_text()
    record[entry] = record[entry] + 1 if isinstance(record[entry], int) else f"x{record[entry]}"
    path.write_text(json.dumps(record))
    for read in (lambda: load_covariance(make_lm(), folder), lambda: collect(make_lm(), text_file, folder, 5)):
        with pytest.raises(ValueError, match=r"covariance\.json was changed after it was written"):
            read()
    path.write_text(as_written[: len(as_written) // 2])
    with pytest.raises(ValueError, match=r"covariance\.json is not JSON"):
        load_covariance(make_lm(), folder)


def test_statistics_of_an_earlier_version_are_taken_and_those_of_another_configuration_refused(
    make_lm, text_file, tmp_path
):
    folder, lm = tmp_path / "stats", make_lm()
    collect(lm, text_file, folder, 5)
    path = folder / "covariance.json"
    whole = json.loads(path.read_text())
    older = {name: value for name, value in whole.items() if name not in ("seal", "identity")}
    path.write_text(json.dumps(older))
    load_covariance(lm, folder)
    collect(lm, text_file, folder, 6)
    other = make_lm()
    other.model.config = copy.deepcopy(other.model.config)
    other.model.config.rms_norm_eps = 1e-3
    for read in (lambda: load_covariance(other, folder), lambda: collect(other, text_file, folder, 8)):
        with pytest.raises(ValueError, match=r"covariance\.json .*rms_norm_eps was 1e-06, is 0\.001"):
            read()


def test_a_text_that_has_changed_where_it_was_read_is_not_gone_on_with(make_lm, text_file, tmp_path):
    lm = make_lm()
    path = Path(text_file)
    lines = path.read_text().splitlines()
    collect(lm, text_file, tmp_path / "stats", samples=8, portion=4)
    path.write_text("\n".join([*lines, "One more at the end"]))
    assert collect(lm, text_file, tmp_path / "stats", samples=12, portion=4).texts == 12
    path.write_text("\n".join(["Another", *lines[1:]]))
    with pytest.raises(ValueError, match=r"text\.txt: its first 12 texts are not those"):
        collect(lm, text_file, tmp_path / "stats", samples=16)
    path.write_text("\n".join(lines[:8]))
    with pytest.raises(ValueError, match=r"text\.txt: its first 12 texts are not those"):
        collect(lm, text_file, tmp_path / "stats", samples=16)


def test_a_hub_data_set_is_streamed_with_its_configuration(monkeypatch):
    calls = []

    def load_dataset(*args, **options):
        calls.append((*args, options))
        return iter([{"text": " one "}, {"text": " "}, {"text": "two"}] if args[0] == "some/wiki" else [{"body": "x"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert list(read_texts("some/wiki:20231101.en")) == ["one", "two"]
    assert list(read_texts("some/wiki")) == ["one", "two"]
    how = {"split": "train", "streaming": True}
    assert calls == [("some/wiki", "20231101.en", how), ("some/wiki", None, how)]
    with pytest.raises(ValueError, match="some/other: has no column 'text'; there are body"):
        list(read_texts("some/other"))


def test_a_killed_command_goes_on(tmp_path, model_folder, text_file, make_lm):
    folder = tmp_path / "stats"
    lines = list(read_texts(text_file))
    many = tmp_path / "many.txt"
    many.write_text("\n".join(lines * 200), encoding="utf-8")
    command = [sys.executable, "-m", "agents.covariance", "--text", str(many), "--output", str(folder)]
    command += ["--model", model_folder, "--modules", "layers.2.mlp.down_proj", "--samples", "8000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    while not (folder / "covariance.json").exists() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert json.loads((folder / "covariance.json").read_text())["texts"] < 8000
    main(tyro.cli(Args, args=command[3:]))
    lm = make_lm()
    (name,) = lm.modules
    assert json.loads((folder / "covariance.json").read_text())["texts"] == 8000
    torch.testing.assert_close(
        load_covariance(lm, folder)[name], key_covariance(lm, lines, bos=True)[name], rtol=1e-3, atol=1e-4
    )


def test_texts_are_read_from_json_lines_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": " one "}\n\n{"text": "two"}\n{"words": 3}\n')
    texts = read_texts(str(path))
    assert [next(texts), next(texts)] == ["one", "two"]
    with pytest.raises(ValueError, match=r"text\.jsonl, line 4"):
        next(texts)


def test_the_beginnings_of_web_texts_in_a_file_of_wise_are_text(tmp_path):
    file = tmp_path / "edits.json"
    records = [
        {
            "prompt": f"The capital of {country} is",
            "target_new": "Rome",
            "subject": country,
            "locality_prompt": f"A page about {country}.\nIt was last seen by",
            "locality_ground_truth": "the ferry man",
        }
        for country in ("France", "Spain")
    ]
    file.write_text(json.dumps([*records, records[0]]), encoding="utf-8")
    assert list(read_texts(f"wise:{file}")) == [
        f"A page about {country}.\nIt was last seen by" for country in ("France", "Spain")
    ]
