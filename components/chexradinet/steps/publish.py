"""Kubeflow component of `training.publish`."""

from kfp import dsl

from chexradinet.steps import worker


@worker
def publish(
    models_uri: str,
    settings: dict,  # type: ignore[type-arg]
    best: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    decision: dsl.Output[dsl.Markdown],
    figures: dsl.Output[dsl.Artifact],
) -> str:
    """Publish the best round if it beats the champion; return the champion's digest."""
    from pathlib import Path

    from chexradinet.artifacts import write_document
    from chexradinet.config import PublishConfig
    from chexradinet.training.publish import DECISION_SCHEMA, publish

    outcome = publish(
        Path(best.path),
        Path(evaluation.path),
        Path(dataset.path),
        models_uri,
        PublishConfig(**settings),
    )
    write_document(Path(figures.path), "publication", DECISION_SCHEMA, outcome.as_dict())
    Path(decision.path).write_text(outcome.as_markdown(), encoding="utf-8")
    return outcome.champion_digest
