"""Names of findings."""

import pytest

from chexradinet.errors import UnknownFindingError
from chexradinet.findings import (
    KNOWN,
    KNOWN_FINDINGS,
    NIH_FINDINGS,
    is_no_finding,
)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Infiltrate", "Infiltration"),
        ("Infiltration", "Infiltration"),
        ("Pleural Effusion", "Effusion"),
        ("pleural_thickening", "Pleural_Thickening"),
        ("Pleural Thickening", "Pleural_Thickening"),
        ("  lung   opacity ", "Lung_Opacity"),
    ],
)
def test_spellings_of_the_public_data_sets_meet_in_one_name(spelling: str, name: str) -> None:
    assert KNOWN.canonical(spelling) == name


def test_every_known_name_is_its_own_canonical_name() -> None:
    assert [KNOWN.canonical(name) for name in KNOWN_FINDINGS] == list(KNOWN_FINDINGS)
    assert len(NIH_FINDINGS) == 14


def test_an_unknown_name_is_refused_with_the_closest_known_one() -> None:
    with pytest.raises(UnknownFindingError, match=r"'Cardiomegally'; did you mean 'Cardiomegaly'"):
        KNOWN.canonical("Cardiomegally")


def test_no_finding_is_never_a_finding() -> None:
    assert is_no_finding("No Finding")
    assert KNOWN.canonical_all(["No Finding", "Mass", " ", "mass", "Nodule"]) == ("Mass", "Nodule")
