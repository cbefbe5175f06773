"""What the figures of a run refuse, and how drift becomes one number a kind."""

import pytest

from chexradinet.errors import ConfigError
from chexradinet.run_figures import (
    DRIFT_KINDS,
    NightlyTelemetry,
    TrainingTelemetry,
    drift_ratios,
)

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stage_seconds": {"patient 12": 1.0}}, "stage_seconds"),
        ({"flagged": {"effusion?": 1}}, "flagged"),
        ({"drift": {"12345": 1.0}}, "drift"),
        ({"rejected": {"because": 1}}, "rejected"),
        ({"drift": {"age": float("nan")}}, "finite"),
        ({"duration_seconds": -1.0}, "duration_seconds"),
        ({"out_of_distribution_ratio": 1.5}, "out_of_distribution_ratio"),
        ({"model_digest": "latest"}, "model_digest"),
        ({"model_round": None}, "model_round"),
        ({"model_round": 9}, "model_round"),
    ],
)
def test_a_label_or_number_outside_its_list_is_refused(
    changes: dict[str, object], named: str
) -> None:
    sound = {"model_digest": DIGEST, "model_round": 2}
    with pytest.raises(ConfigError, match=named):
        NightlyTelemetry(**(sound | changes))  # type: ignore[arg-type]


def test_a_round_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="mean_auroc"):
        TrainingTelemetry(mean_auroc={99: 0.5})


def test_drift_is_above_one_exactly_where_the_alarm_is_raised() -> None:
    p_values = {
        "score:Mass": 0.5,
        "score:Edema": 0.0004,
        "metadata:age": 0.001,
        "metadata:manufacturer": 0.0002,
        "image:mean": 0.0005,
        "embedding": 0.9,
        "ood": 1.0,
    }
    ratios = drift_ratios(p_values, limit=0.0005)
    assert {kind for kind, ratio in ratios.items() if ratio > 1} == {"scores", "manufacturer"}
    assert ratios["scores"] == pytest.approx(1.25)
    assert ratios["exposure"] == 1.0
    assert set(ratios) == set(DRIFT_KINDS) - {"view", "sex"}
    assert NightlyTelemetry(drift=ratios).drift == ratios
