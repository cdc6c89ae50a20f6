"""Wrappers that make the environment small enough for general RL libraries.

    env = GradientStatistics(StepSizeAction(gym.make("LifelongEdit-v1")))

gives a one-level Dict observation and a flat Box action in [-1, 1], which Stable-Baselines3 takes as it is.
:class:`GradientSketch` and :class:`LayerStatistics` add an entry each; :class:`SketchedAction` is a richer action, and
:class:`RelativeReward` measures the reward between no edit and a reference editor.
"""

from editenv.wrappers.actions import SketchedAction, StepSizeAction
from editenv.wrappers.observations import GradientSketch, GradientStatistics, LayerStatistics
from editenv.wrappers.rewards import RelativeReward

__all__ = [
    "GradientSketch",
    "GradientStatistics",
    "LayerStatistics",
    "RelativeReward",
    "SketchedAction",
    "StepSizeAction",
]
