"""A stream of random numbers of its own."""

import torch

from utils.seeding import RandomStream


def test_what_a_stream_draws_disturbs_nothing_and_goes_on_where_it_was():
    torch.manual_seed(3)
    expected = [torch.rand(2) for _ in range(3)]
    own = torch.Generator().manual_seed(7)
    stream = RandomStream(7, "cpu")
    torch.manual_seed(3)
    for value in expected:
        with stream:
            assert torch.equal(torch.rand(4), torch.rand(4, generator=own))
        assert torch.equal(torch.rand(2), value)
