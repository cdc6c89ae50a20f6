"""An episode as an animated picture: which edits are kept while others come, rewards and scores.

    python -m benchmarks.episode --out docs/reference/episode.gif
    python -m benchmarks.episode --policy no-edit --horizon 10 --out episode.gif

The frames are those of LifelongEdit-v1 with render_mode="rgb_array"; the policies those of benchmarks.returns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

import editenv  # noqa: F401 - registers the environment
from benchmarks.returns import POLICIES
from editenv.arguments import NonNegativeInt, PositiveInt, check_fields
from editenv.atomic_files import atomic_write

COLOURS = 256
"""Of the palette that all frames share: as many as the format has, so that both ends of the scale are in it."""

LAST_FRAME_SECONDS = 3.0


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        out: File of the animation, .gif.
        policy: Name of benchmarks.returns.
        seed: Of the stream of the validation split.
        edits_per_step: n: edits in a batch.
        horizon: Batches of the episode.
        frames_per_second: Steps shown in a second.
    """

    out: Path
    policy: str = "best-constant"
    seed: NonNegativeInt = 0
    edits_per_step: PositiveInt = 20
    horizon: PositiveInt = 30
    frames_per_second: PositiveInt = 4

    def __post_init__(self) -> None:
        check_fields(self)


def frames(args: Args) -> list[np.ndarray]:
    """``(540, 960, 3)`` uint8 each: before the first step, and after every one."""
    arguments: dict[str, Any] = {"edits_per_step": args.edits_per_step, "horizon": args.horizon}
    env = gym.make("LifelongEdit-v1", split="validation", render_mode="rgb_array", **arguments)
    wrapped, act = POLICIES[args.policy][1](env, args.seed)
    observation, _ = wrapped.reset(seed=args.seed)
    pictures, over = [np.asarray(wrapped.render())], False
    while not over:
        observation, _, terminated, truncated, _ = wrapped.step(act(observation))
        pictures.append(np.asarray(wrapped.render()))
        over = terminated or truncated
    return pictures


def main(args: Args) -> None:
    """Writes the animation.

    Raises:
        SystemExit: For a policy that there is not, or another kind of file.
    """
    from PIL import Image

    if args.policy not in POLICIES:
        raise SystemExit(f"--policy: {args.policy} is unknown; there are {', '.join(POLICIES)}")
    if args.out.suffix != ".gif":
        raise SystemExit(f"--out: {args.out} must end in .gif")
    pictures = [Image.fromarray(frame) for frame in frames(args)]
    palette = pictures[-1].quantize(COLOURS)  # the last frame has every colour; one palette keeps the file small
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [1000 // args.frames_per_second] * len(small)
    durations[-1] = round(1000 * LAST_FRAME_SECONDS)
    with atomic_write(args.out) as partial:
        small[0].save(
            partial, format="GIF", save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=True
        )
    print(f"{args.out}: {len(small)} frames, {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
