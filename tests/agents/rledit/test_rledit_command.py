"""The training command: killed, given again, and given with other options."""

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from agents.hypernetwork.arguments import Args
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.train_command import Checkpoint, main
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
def args(model_folder, tmp_path):
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
    with pytest.raises(SystemExit, match=r"checkpoint\.pt is damaged, or no checkpoint: remove it"):
        Checkpoint(path, "this").load(trainer)
    assert not ran.exists()


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return type(self.ran).touch, (self.ran,)
