"""Captures, growth, merges, compactions and analyses in a bucket, killed and refused at their requests."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_points.bucket import KINDS, BucketStage
from crash_points.stage import PLAYS, Act
from s3_server import s3_server

NAMES = ("capture", "grow", "merge", "compact", "masks", "parquet", "probe")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[BucketStage]:
    with s3_server() as server:
        stage = BucketStage(tmp_path_factory.mktemp("bucket"), tiny_model, server)
        yield stage
        stage.close()


def test_a_compaction_in_a_bucket_that_is_struck_at_random_requests_loses_nothing(made: BucketStage) -> None:
    seed = random.randrange(2**32)
    print(f"drawn with seed {seed}")  # noqa: T201
    chance, act = random.Random(seed), Act(made, PLAYS["compact"])
    drawn = chance.sample(list(KINDS), 2)
    wrong = [each for how in drawn for each in act.strike(chance.randint(1, len(act.points)), how)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_a_command_in_a_bucket_that_is_struck_at_each_of_its_requests_loses_nothing(
    made: BucketStage, name: str
) -> None:
    act = Act(made, PLAYS[name])
    wrong = [each for at in range(1, len(act.points) + 1) for how in KINDS for each in act.strike(at, how)]
    assert not wrong, f"{len(wrong)} of {len(KINDS) * len(act.points)}:\n" + "\n".join(wrong[:50])
