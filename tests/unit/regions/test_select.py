"""Which findings guide training."""

import numpy as np
import pytest

from chexradinet.errors import MismatchError
from chexradinet.regions.extract import guiding_findings


def test_every_labelled_positive_guides_and_else_the_highest_score() -> None:
    labels = np.array([[1, 0, 1], [0, 0, 0], [np.nan, 0, np.nan], [np.nan, 1, 0]])
    scores = np.array([[0.0, 9.0, 0.0], [0.1, 0.3, 0.2], [0.1, 0.2, 0.9], [5.0, 0.0, 5.0]])
    assert guiding_findings(labels, scores) == [(0, 0), (0, 2), (1, 1), (2, 2), (3, 1)]


def test_first_of_equal_scores_guides() -> None:
    assert guiding_findings(np.zeros((1, 3)), np.array([[0.5, 0.7, 0.7]])) == [(0, 1)]


def test_score_that_is_not_finite_counts_as_lowest() -> None:
    scores = np.array([[np.nan, -4.0], [np.nan, np.nan]])
    assert guiding_findings(np.zeros((2, 2)), scores) == [(0, 1), (1, 0)]


def test_no_image_guides_nothing() -> None:
    assert guiding_findings(np.zeros((0, 3)), np.zeros((0, 3))) == []


def test_given_arrays_stay_as_they_are() -> None:
    labels, scores = np.zeros((2, 2)), np.array([[np.nan, 1.0], [2.0, 1.0]])
    before = labels.copy(), scores.copy()
    guiding_findings(labels, scores)
    np.testing.assert_array_equal(labels, before[0])
    np.testing.assert_array_equal(scores, before[1])


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2,)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MismatchError, match="same data set"):
        guiding_findings(np.zeros((2, 3)), np.zeros(shape))
