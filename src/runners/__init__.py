"""Runners: collect episodes with a controller that is handed to them."""

from runners.episode_runner import EpisodeRunner
from runners.vector_runner import VectorRunner

REGISTRY = {"episode": EpisodeRunner, "vector": VectorRunner}
