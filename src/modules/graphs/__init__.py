"""Graphs of agents: fixed ones whose edges have payoffs, and neighbourhoods that change with what agents see."""
