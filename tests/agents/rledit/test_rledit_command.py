"""The training command: killed, given again, and given with other options."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agents.hypernetwork.arguments import Args
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.train_command import Checkpoint, main, run
from agents.rledit.trainer import RLEditTrainer

OPTIONS = {
    "--modules": "layers.2.mlp.down_proj",
    "--checkpoint-every": "1",
    "--seed": "3",
    "--train.trajectories": "4",
    "--train.horizon": "2",
    "--train.edits-per-step": "3",
    "--train.warm-up-batches": "2",
    "--train.policy.rank": "3",
    "--train.policy.blocks": "1",
    "--train.memory-samples": "1",
    "--train.preconditioner": "True",
    "--train.covariance-texts": "50",
}
# Dies without warning while the second checkpoint is about to take the first one's place.
KILLED = """
import os, runpy, signal
replace, seen = os.replace, []
def replace_or_die(source, target):
    if str(target).endswith("checkpoint.pt"):
        if seen:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(target)
    replace(source, target)
os.replace = replace_or_die
runpy.run_module("agents.rledit", run_name="__main__", alter_sys=True)
"""


def command(how, folder, model_folder):
    options = [part for pair in OPTIONS.items() for part in pair if part != "True"]
    arguments = [sys.executable, *how, "--output", str(folder), "--model", model_folder, *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"})


def test_killed_and_given_again_is_as_if_never_killed(model_folder, tmp_path):
    killed = command(["-c", KILLED], tmp_path / "killed", model_folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    assert list((tmp_path / "killed").glob("checkpoint.pt.*.partial"))
    assert not (tmp_path / "killed" / "policy.safetensors").exists()
    state = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert state["trainer"]["trajectory"] == 1

    again = command(["-m", "agents.rledit"], tmp_path / "killed", model_folder)
    assert again.returncode == 0, again.stderr
    assert "going on from trajectory 1" in again.stdout
    whole = command(["-m", "agents.rledit"], tmp_path / "whole", model_folder)
    assert whole.returncode == 0, whole.stderr
    assert "going on" not in whole.stdout
    for name in ("policy.safetensors", "policy.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.fixture
def args(model_folder, tenth_of_atlas, tmp_path):
    train = TrainConfig(
        trajectories=1, horizon=1, edits_per_step=2, warm_up_batches=1, policy=PolicyConfig(blocks=1, rank=2)
    )
    return Args(
        output=tmp_path / "policy", train=train, model=model_folder, modules=("layers.2.mlp.down_proj",),
        checkpoint_every=1,
    )  # fmt: skip


def test_a_finished_training_is_not_done_again(args, capsys):
    main(args, RLEditTrainer)
    first = (args.output / "policy.safetensors").read_bytes()
    record = json.loads((args.output / "policy.json").read_text())
    assert record["train"]["horizon"] == 1
    assert record["model"] == args.model
    (args.output / "policy.safetensors").unlink()
    capsys.readouterr()
    main(args, RLEditTrainer)
    assert "going on from trajectory 1" in capsys.readouterr().out
    assert (args.output / "policy.safetensors").read_bytes() == first


@pytest.mark.parametrize("change", ["seed", "horizon"])
def test_a_checkpoint_of_other_options_is_refused(args, change):
    main(args, RLEditTrainer)
    before = (args.output / "policy.safetensors").read_bytes()
    other = replace(args, seed=9) if change == "seed" else replace(args, train=replace(args.train, horizon=2))
    with pytest.raises(SystemExit, match=r"checkpoint\.pt belongs to"):
        main(other, RLEditTrainer)
    assert (args.output / "policy.safetensors").read_bytes() == before


def test_how_often_it_saves_may_change(args, capsys):
    main(args, RLEditTrainer)
    main(replace(args, checkpoint_every=7), RLEditTrainer)
    assert "going on from trajectory 1" in capsys.readouterr().out


@pytest.fixture
def own_edits(args, tmp_path):
    """The same training on a file of one's own, and with a model of one's own."""
    rows = [{"prompt": f"The home of {i} is", "target": "Rome", "old_answer": "Oslo"} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copytree(args.model, tmp_path / "model")
    return replace(args, dataset=str(tmp_path), model=str(tmp_path / "model"))


def test_a_changed_training_file_or_model_is_refused(own_edits, tmp_path):
    main(own_edits, RLEditTrainer)
    before = (own_edits.output / "policy.safetensors").read_bytes()
    edits, config, weights = (
        tmp_path / "train.jsonl",
        tmp_path / "model/config.json",
        tmp_path / "model/model.safetensors",
    )

    def other_norm():
        tensors = load_file(weights)
        save_file(tensors | {"model.norm.weight": 2 * tensors["model.norm.weight"]}, weights, {"format": "pt"})

    for path, change, said in (
        (edits, lambda: edits.write_text(edits.read_text().replace("Rome", "Lima", 1)), "training edits have changed"),
        (config, lambda: config.write_text(config.read_text().replace("silu", "gelu")), "hidden_act was 'silu', is 'gelu'"),
        (weights, other_norm, "that are not edited"),
    ):  # fmt: skip
        as_it_was = path.read_bytes()
        change()
        with pytest.raises(SystemExit, match=rf"checkpoint\.pt belongs to .*{said}"):
            main(own_edits, RLEditTrainer)
        path.write_bytes(as_it_was)
    assert (own_edits.output / "policy.safetensors").read_bytes() == before


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with_and_what_was_not_checked_is_said(own_edits, capsys):
    main(own_edits, RLEditTrainer)
    path = own_edits.output / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["made_of"]
    torch.save(state, path)
    capsys.readouterr()
    main(own_edits, RLEditTrainer)
    said = capsys.readouterr().out
    assert "going on from trajectory 1" in said
    assert "was not checked" in said


def test_a_damaged_checkpoint_is_named_without_a_traceback(own_edits):
    main(own_edits, RLEditTrainer)
    path = own_edits.output / "checkpoint.pt"
    content = path.read_bytes()
    place = content.index(trained_bytes(path))
    torch.save({"mine": 3}, path)
    damaged = {"another's": path.read_bytes(), "junk": b"junk" * 100, "empty": b""}
    damaged |= {f"cut at {part}": content[: int(part * len(content))] for part in (0.01, 0.3, 0.9, 0.999)}
    damaged["flipped"] = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    for what, changed in damaged.items():
        path.write_bytes(changed)
        with pytest.raises(SystemExit, match=r"checkpoint\.pt is damaged .*remove it") as refused:
            main(own_edits, RLEditTrainer)
        assert "weights_only" not in str(refused.value), what
        assert path.read_bytes() == changed
    path.write_bytes(content)
    main(own_edits, RLEditTrainer)


def trained_bytes(path):
    """Of a parameter, as they lie in the file."""
    policy = torch.load(path, weights_only=True)["trainer"]["policy"]
    largest = max(policy.values(), key=torch.numel)
    return largest.numpy().tobytes()


def test_a_folder_that_is_read_is_not_written_to(own_edits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for output in (tmp_path / "model", tmp_path / "model/policy", Path("model"), tmp_path / "link/policy"):
        with pytest.raises(ValueError, match="never changed"):
            main(replace(own_edits, output=output), RLEditTrainer)
    with pytest.raises(ValueError, match="folder of the dataset"):
        main(replace(own_edits, output=tmp_path), RLEditTrainer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model", "train.jsonl"]
    assert not any(path.is_dir() or "checkpoint" in path.name for path in (tmp_path / "model").iterdir())


def test_as_a_command_it_says_what_is_wrong_in_one_line(args, monkeypatch):
    with pytest.raises(SystemExit, match="there is no model folder"):
        run(replace(args, model="./none"), RLEditTrainer)

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patched:
        patched.setattr(  # its log is no matter here
            "agents.hypernetwork.train_command.SummaryWriter",
            lambda *_, **__: SimpleNamespace(add_scalar=print, close=print),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # takes part of a write, as a full disk does
        try:
            with pytest.raises(SystemExit, match=r"too large.*checkpoint\.pt"):
                run(args, RLEditTrainer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(args.output.glob("checkpoint*"))
    monkeypatch.setattr("agents.hypernetwork.networks.save_file", full)
    with pytest.raises(SystemExit, match=r"policy\.safetensors could not be written: .*No space left"):
        run(args, RLEditTrainer)
    assert (args.output / "checkpoint.pt").exists()
    assert not list(args.output.glob("policy*"))


@pytest.mark.parametrize("content", [b"", b"cut", b"trap", b"list"])
def test_a_damaged_checkpoint_is_named_and_runs_nothing(content, tmp_path):
    path, ran = tmp_path / "checkpoint.pt", tmp_path / "ran"
    torch.save({"identity": "this", "trainer": {"weights": torch.zeros(1000)}}, path)
    if content == b"cut":
        content = path.read_bytes()[:-500]
    if content == b"trap":
        content = pickle.dumps(Trap(ran))
    if content == b"list":
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    trainer = SimpleNamespace(lm=SimpleNamespace(device=torch.device("cpu")))
    with pytest.raises(SystemExit, match=r"checkpoint\.pt is damaged .*remove it"):
        Checkpoint(path, "this", {}).load(trainer)
    assert not ran.exists()


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return type(self.ran).touch, (self.ran,)
