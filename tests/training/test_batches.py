"""Which problems a step sees, from the step alone; and which are held out."""

from dataclasses import replace

import pytest

from looped_lib.config import TrainingConfig
from looped_lib.tasks.addition import Addition, generate_operands, save_jsonl
from looped_lib.training.batches import Batches


def test_batches_may_come_several_times_in_a_row_and_in_the_order_of_the_file():
    config = TrainingConfig(batch_size=4, batch_repeats=3, shuffle=False)
    rows = [Batches(config, 10, seed=0).rows(step).tolist() for step in range(9)]
    assert rows == [[0, 1, 2, 3]] * 3 + [[4, 5, 6, 7]] * 3 + [[8, 9, 0, 1]] * 3
    once, thrice = (Batches(replace(config, batch_repeats=n, shuffle=True), 10, seed=0) for n in (1, 3))
    assert [thrice.rows(step).tolist() for step in range(9)] == [once.rows(step // 3).tolist() for step in range(9)]


@pytest.mark.parametrize("limit, n", [(None, 7), (5, 5)])
def test_a_given_test_file_is_used_whole(tmp_path, limit, n):
    save_jsonl(tmp_path / "test.jsonl", *generate_operands(2, 7, 0))
    config = Addition(train_file="train.jsonl", test_file=str(tmp_path / "test.jsonl"), n_test=3)
    assert len(config.held_out(limit)) == n
