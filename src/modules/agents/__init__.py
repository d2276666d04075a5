"""Agent networks: from an agent's inputs and memory to its action values."""

from modules.agents.rnn_agent import RNNAgent

REGISTRY = {"rnn": RNNAgent}
