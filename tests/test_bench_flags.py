"""The commands that the benchmarks would run are commands that there are."""

import shlex
from typing import Any

import pytest

from cache.cli import parse_flags
from infer.options import PredictOptions
from pipeline.options import BuildOptions
from tests.bench.experiments import EXPERIMENTS, GROUPS
from tests.bench.race import COURSES
from train.options import TrainOptions, options_from


def parsed(options: type, flags: str) -> dict[str, Any]:
    """What a command line means; one that is wrong ends the test."""
    return parse_flags(options, shlex.split(flags), prog="", description="")


@pytest.mark.parametrize("name", list(COURSES))
def test_courses_of_the_race(name: str) -> None:
    """Each training finds one of the course's caches by its size, and the members that judge are trained."""
    course = COURSES[name]
    built = [BuildOptions(**parsed(BuildOptions, flags)) for flags in course.build]
    trained = [options_from(parsed(TrainOptions, flags)) for flags in course.train]
    sizes = [(options.n_mels, options.width or options.n_mels) for options in built]
    assert all(sizes.count((options.n_mels, options.n_frames)) == 1 for options in trained)
    judging = PredictOptions(**parsed(PredictOptions, course.judge))
    assert set(judging.run) == {options.run_name for options in trained}
    if judging.folds != "all":
        folds = [options.fold for options in trained if options.run_name == judging.run[0]]
        assert folds == judging.folds.split(",")


def test_experiments() -> None:
    """The flags of each row, after those of its group."""
    for experiment in EXPERIMENTS:
        _, build, train = GROUPS[experiment.group]
        built = BuildOptions(**parsed(BuildOptions, f"{build} {experiment.build}"))
        trained = options_from(parsed(TrainOptions, f"{train} {experiment.train}"))
        assert (built.n_mels, built.width or built.n_mels) == (trained.n_mels, trained.n_frames), experiment.name
