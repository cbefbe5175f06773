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
) -> str:
    """Publish the best round if it beats the champion; return the champion's digest."""
    from pathlib import Path

    from chexradinet.config.parameters import Publication
    from chexradinet.training.publish import publish

    outcome = publish(
        Path(best.path),
        Path(evaluation.path),
        Path(dataset.path),
        models_uri,
        replace_incomparable=Publication(**settings).replace_incomparable,
    )
    Path(decision.path).write_text(outcome.as_markdown(), encoding="utf-8")
    return outcome.champion_digest
