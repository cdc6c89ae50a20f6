"""What a run has changed, against numpy on the saved models; and what sets two runs apart."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents import cli
from agents.editing.arguments import EditArgs
from agents.editing.diff import singular_values, total_change
from agents.editing.edit_command import edit as run_edit
from agents.editing.guard import Guard
from editenv.delta_files import read_delta_file
from editenv.deltas import LowRank, dense

LAST = "model.layers.2.mlp.down_proj"
TOWNS = ("Rome", "Oslo", "Bonn", "Lima", "Kiev")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def runs(model_folder, tmp_path, monkeypatch):
    """Two runs: fine-tuning of five corrections, and UltraEdit with the last four and one more."""
    monkeypatch.setattr("agents.editing.unrelated.GENERAL", ("The capital of France is", "Bees make"))
    folders = []
    for method, first in (("fine-tune", 0), ("ultraedit", 1)):
        rows = [{"prompt": f"The home of number {i} is", "target": TOWNS[i % 5]} for i in range(first, first + 5)]
        file = tmp_path / f"{method}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(tmp_path / method)
        guard = Guard(1e9, 1e9, None, None, retry=False)
        run_edit(EditArgs(str(file), folders[-1], model_folder, method, modules=(LAST,), edits_per_step=2, guard=guard))
    return folders


def said(monkeypatch, capsys, *words):
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["editenv", "diff", *map(str, words)])
    cli.main()
    return capsys.readouterr().out


def summed(folder):
    return sum(dense(action[LAST]).numpy() for action in read_delta_file(folder / "deltas.safetensors")[0])


def test_a_run_is_told_by_what_it_changed(runs, model_folder, monkeypatch, capsys):
    base = load_file(f"{model_folder}/model.safetensors")[f"{LAST}.weight"].numpy()
    for folder in runs:
        report = json.loads(said(monkeypatch, capsys, folder, "--json"))
        (module,) = report["modules"].values()
        edited = load_file(folder / "model/model.safetensors")[f"{LAST}.weight"].numpy()
        expected = np.linalg.norm(edited - base) / np.linalg.norm(base)
        assert module["relative_norm"] == pytest.approx(expected, rel=1e-3)
        change = summed(folder)
        assert module["rank"] == np.linalg.matrix_rank(change)
        squares = np.linalg.svd(change.astype(float))[1] ** 2
        assert squares[: module["directions"]].sum() >= 0.9 * squares.sum()
        assert squares[: module["directions"] - 1].sum() < 0.9 * squares.sum()
        outcomes, answers = lines(folder / "results.jsonl"), lines(folder / "unrelated.jsonl")
        assert [row["id"] for row in report["said"]] == [row["id"] for row in outcomes if row["begins_right"]]
        assert [row["id"] for row in report["not_said"]] == [row["id"] for row in outcomes if not row["begins_right"]]
        assert report["unrelated"]["changed"] == [row["prompt"] for row in answers if row["changed"]]
        shown = said(monkeypatch, capsys, folder)
        assert f"{module['rank']} of 32" in shown
        assert f"{len(report['not_said'])} are not" in shown


def test_two_runs_are_told_apart(runs, monkeypatch, capsys):
    one, two = map(summed, runs)
    result = json.loads(said(monkeypatch, capsys, *runs, "--json"))
    (module,) = result["modules"].values()
    cosine = (one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two)
    assert module["cosine"] == pytest.approx(cosine, rel=1e-3)
    assert [row["prompt"] for row in result["asked_of_first"]] == ["The home of number 0 is"]
    assert [row["prompt"] for row in result["asked_of_second"]] == ["The home of number 5 is"]
    both = [{row["prompt"]: row["begins_right"] for row in lines(folder / "results.jsonl")} for folder in runs]
    shared = both[0].keys() & both[1].keys()
    assert result["said_by_both"] == sum(both[0][prompt] and both[1][prompt] for prompt in shared)
    assert len(result["said_by_first"]) == sum(both[0][prompt] and not both[1][prompt] for prompt in shared)
    assert f"{cosine:.2f}" in said(monkeypatch, capsys, *runs)
    (runs[1] / "results.jsonl").unlink()
    assert "was not evaluated yet" in said(monkeypatch, capsys, *runs)


def test_what_is_no_run_or_was_changed_is_named(runs, tmp_path, monkeypatch, capsys):
    path = runs[0] / "batches/000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    for folder, words in (
        (tmp_path / "nowhere", "is not there"),
        (runs[0], "000002.safetensors is not what the journal"),
    ):
        with pytest.raises(SystemExit):
            said(monkeypatch, capsys, folder)
        assert words in capsys.readouterr().err


def test_factors_are_summed_as_matrices_are():
    torch.manual_seed(0)
    few = [{"m": LowRank(torch.randn(30, 2), torch.randn(2, 20))} for _ in range(3)]
    many = few * 4
    for actions, low in ((few, True), (many, False), ([*few, {"m": torch.randn(30, 20)}], False)):
        total = total_change(actions)["m"]
        assert isinstance(total, LowRank) == low
        matrix = sum(dense(action["m"]) for action in actions)
        torch.testing.assert_close(dense(total), matrix)
        expected = np.linalg.svd(matrix.numpy().astype(float))[1]
        values = singular_values(total).numpy()
        np.testing.assert_allclose(values, expected[: len(values)], atol=1e-4)
