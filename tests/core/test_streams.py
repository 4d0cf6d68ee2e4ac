"""Streams of one seed are independent of each other, and what they draw stays what it was."""

from looped_lib.core import streams


def test_streams_and_seeds_differ():
    every = [streams.LOOPS, streams.BATCHES, streams.DROPOUT, streams.CARRY, streams.PROBES, streams.ROWS]
    assert len({streams.seed_of(stream, seed, step) for stream in every for seed in (0, 1) for step in (0, 1)}) == 24
    assert len({streams.generator(stream, 0, 1).random() for stream in every}) == 6


def test_what_is_drawn_stays():
    """A run goes on as it began, and a recorded one can be made again."""
    assert streams.seed_of(streams.DROPOUT, 0, 1, 0) == 6047568938206165688
    assert streams.generator(streams.LOOPS, 0, 1).integers(10**9) == 374619013
