"""Fixtures of several tests. That this file is here puts its folder on the import path, for `helpers`."""

import signal

import pytest
import torch

torch.set_num_threads(1)  # the networks are tiny: a second thread only waits, on a busy machine for long


@pytest.fixture
def double():
    """Networks, batches and arithmetic in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def _heeded_interrupts():
    """A process that a shell started in the background ignores Ctrl-C, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
