import pytest
from PIL import Image

from benchmarks import episode
from benchmarks.episode import Args, main


def test_an_episode_is_an_animation_with_a_frame_for_every_step(make_env, tmp_path, monkeypatch):
    monkeypatch.setattr(
        episode.gym, "make", lambda name, **arguments: make_env(**(arguments | {"reward": "improvement"}))
    )
    out = tmp_path / "episode.gif"
    main(Args(out=out, policy="constant", edits_per_step=2, horizon=3, frames_per_second=5))
    with Image.open(out) as animation:
        assert (animation.n_frames, animation.size) == (4, (960, 540))
        durations, frames = [], []
        for i in range(animation.n_frames):
            animation.seek(i)
            durations.append(animation.info["duration"])
            frames.append(animation.convert("RGB").tobytes())
    assert durations == [200, 200, 200, 3000]
    assert len(set(frames)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"policy": "nothing", "out": "a.gif"}, "there are no-edit"), ({"out": "a.mp4"}, "must end in .gif")],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main(Args(**(arguments | {"out": tmp_path / arguments["out"]})))
