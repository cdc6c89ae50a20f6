import json

import numpy as np
import pytest

pytest.importorskip("minari", reason="the interop extra is not installed")
pytest.importorskip("stable_baselines3", reason="the sb3 extra is not installed")

from agents.rl.export_trajectories import Args, main
from agents.rl.sb3 import make_model, read_settings, wrapped
from agents.rl.sb3_checkpoints import save

MODULE = "layers.2.mlp.down_proj"


@pytest.fixture
def arguments(model_folder, tmp_path):
    small = {"episodes": 2, "horizon": 2, "edits_per_step": 3, "split": "validation", "seed": 4}
    return {"output": tmp_path / "sets", "model": model_folder, "modules": (MODULE,), **small}


def load(folder, name, monkeypatch):
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    return minari.load_dataset(f"lifelongedit/{name}")


def test_what_is_stored_is_what_happened(arguments, make_env, monkeypatch):
    """The stored actions, played again, give the stored observations and rewards."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    main(Args(**arguments))
    dataset = load(arguments["output"], "random-v0", monkeypatch)
    assert (dataset.total_episodes, dataset.total_steps) == (2, 4)
    env = wrapped(make_env(modules=[MODULE], horizon=2))
    for episode, seed in zip(dataset.iterate_episodes(), (4, 5), strict=True):
        observations = [env.reset(seed=seed)[0]]
        for t, action in enumerate(episode.actions):
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            assert episode.rewards[t] == pytest.approx(reward, rel=1e-5)
            assert (episode.terminations[t], episode.truncations[t]) == (terminated, truncated)
        for key, values in episode.observations.items():
            np.testing.assert_allclose(values, np.stack([o[key] for o in observations]), rtol=1e-4, atol=1e-5)
    again = dataset.recover_environment()
    assert again.action_space == env.action_space
    with pytest.raises(SystemExit, match="already"):
        main(Args(**arguments))


def test_a_trained_policy_is_recorded(arguments, make_env, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    policy = tmp_path / "sac"
    with pytest.raises(SystemExit, match=r"options\.json"):
        main(Args(**arguments, policy=policy, name="sac-v0"))
    save(make_model("sac", make_env(modules=[MODULE]), 0), policy / "policy.zip")
    (policy / "options.json").write_text(json.dumps({"algo": "sac", "settings": read_settings("sac")}))
    main(Args(**arguments, policy=policy, name="sac-v0"))
    dataset = load(arguments["output"], "sac-v0", monkeypatch)
    actions = np.concatenate([episode.actions for episode in dataset.iterate_episodes()])
    assert actions.shape == (4, 2)
    assert len(np.unique(actions[:, 0])) == 4
