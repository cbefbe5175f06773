import pytest

from chexradinet.config import UncertainLabel, parse_uncertain
from chexradinet.dataset.labels.generic import parse_age, parse_sex, parse_view
from chexradinet.errors import ConfigError, UnknownFindingError
from chexradinet.records import RejectReason, View


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("", None),
        ("060Y", 60),
        ("013M", 13 / 12),
        ("002W", 14 / 365.25),
        ("001D", 1 / 365.25),
        ("57", 57),
        ("57.5", 57.5),
        ("0", 0),
        ("411Y", None),
        ("-3", None),
        ("nan", None),
        ("old", None),
    ],
)
def test_age_is_years_or_unknown(text: str, years: float | None) -> None:
    assert parse_age(text) == pytest.approx(years)


@pytest.mark.parametrize(
    ("text", "view", "rejected"),
    [
        ("PA", View.PA, None),
        (" ap ", View.AP, None),
        ("", View.UNKNOWN, None),
        ("Frontal", View.UNKNOWN, None),
        ("LL", View.UNKNOWN, RejectReason.NOT_FRONTAL),
        ("Lateral", View.UNKNOWN, RejectReason.NOT_FRONTAL),
        ("AP AXIAL", View.UNKNOWN, RejectReason.NOT_FRONTAL),
    ],
)
def test_view_is_frontal_unknown_or_rejected(
    text: str, view: View, rejected: RejectReason | None
) -> None:
    assert parse_view(text) == (view, rejected)


def test_sex_is_one_letter_or_empty() -> None:
    assert [parse_sex(text) for text in ("Female", "m", "O", "Unknown", "")] == [
        *("F", "M", "O"),
        *("", ""),
    ]


def test_uncertainty_policy_has_exceptions() -> None:
    assert parse_uncertain("ignore") == (UncertainLabel.IGNORE, {})
    assert parse_uncertain("zeros,Pleural Effusion=ones") == (
        UncertainLabel.ZEROS,
        {"Effusion": UncertainLabel.ONES},
    )


@pytest.mark.parametrize("text", ["", "maybe", "Edema=maybe", "ones;zeros"])
def test_unknown_uncertainty_policy_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="uncertain_labels is"):
        parse_uncertain(text)


def test_policy_for_an_unknown_finding_is_refused() -> None:
    with pytest.raises(UnknownFindingError, match="Edma"):
        parse_uncertain("ones,Edma=zeros")
