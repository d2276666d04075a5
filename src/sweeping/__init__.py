"""Sweeps: their plan, the attempts at their runs, the cluster that makes them, and how far they are."""
