"""What agents keep of their training is taken again only for the model and the edits that it was made with."""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from agents.baselines.dafnet import DAFNet, DAFNetConfig
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.rl.sb3 import SB3Agent
from agents.rledit.agent import RLEdit
from editenv.sealed_json import read_sealed, write_sealed

SMALL = TrainConfig(
    trajectories=1, horizon=2, edits_per_step=2, warm_up_batches=2, policy=PolicyConfig(rank=4, blocks=1)
)
MADE = {
    "rledit": lambda: RLEdit(SMALL),
    "dafnet": lambda: DAFNet(DAFNetConfig(layers=1, steps=1, judged=2, longest=3, warm_up_edits=4)),
    "sb3": lambda: SB3Agent("sac", steps=2, config=replace(SMALL, horizon=2)),
}


@pytest.mark.parametrize("name", MADE)
def test_a_kept_training_is_of_this_model_and_these_edits(
    make_env, model_folder, small_world, tmp_path, monkeypatch, name
):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)

    def taken():
        agent = MADE[name]()
        agent.workspace = tmp_path / "kept"
        agent.prepare(make_env(model=str(folder)), 0, lambda *_: None)
        return agent.kept_seconds > 0

    assert not taken()
    assert taken()

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = 1.5 * weights["model.norm.weight"]
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert not taken(), "other weights around the edited ones"
    assert taken()

    with_config = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    (folder / "config.json").write_text(json.dumps(with_config))
    assert not taken(), "another configuration"
    assert taken()

    edits = list(small_world)
    for module in ("hypernetwork.agent", "baselines.kept_network", "rl.sb3"):
        monkeypatch.setattr(
            f"agents.{module}.training_edits", lambda env: [replace(edits[0], target="Lima"), *edits[1:]]
        )
    assert not taken(), "other edits in a file of the same name"


def test_a_policy_of_the_earlier_previous_reference_is_trained_again(make_env, small_world, tmp_path):
    """It was made when each batch looked back at kept a reference of its own."""

    def prepared():
        agent = RLEdit(replace(SMALL, reference="previous"))
        agent.workspace = tmp_path / "kept"
        agent.prepare(make_env(), 0, lambda *_: None)
        return agent.kept_seconds > 0

    assert not prepared()
    assert prepared()
    record = read_sealed(tmp_path / "kept/policy.json")
    del record["one_reference"]
    write_sealed(tmp_path / "kept/policy.json", record)
    assert not prepared()


@pytest.mark.parametrize("name", MADE)
def test_a_flipped_bit_in_what_was_kept_is_noticed(make_env, small_world, tmp_path, name):
    def prepare():
        agent = MADE[name]()
        agent.workspace = tmp_path / "kept"
        agent.prepare(make_env(), 0, lambda *_: None)

    prepare()
    file = tmp_path / "kept" / ("policy.zip" if name == "sb3" else "policy.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name} .*remove .*kept"):
        prepare()
