"""Kubeflow component of `training.evaluate`."""

from kfp import dsl

from chexradinet.steps import worker


# fmt: off
@worker
def evaluate(
    settings: dict,  # type: ignore[type-arg]
    accelerator_type: str, accelerators: str,
    dataset: dsl.Input[dsl.Dataset],
    best: dsl.Output[dsl.Model], evaluation: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    round_0: dsl.Input[dsl.Model], round_1: dsl.Input[dsl.Model] = None,
    round_2: dsl.Input[dsl.Model] = None, round_3: dsl.Input[dsl.Model] = None,
    round_4: dsl.Input[dsl.Model] = None, round_5: dsl.Input[dsl.Model] = None,
    round_6: dsl.Input[dsl.Model] = None, round_7: dsl.Input[dsl.Model] = None,
    round_8: dsl.Input[dsl.Model] = None, control: dsl.Input[dsl.Model] = None,
    permuted: dsl.Input[dsl.Model] = None,
) -> None:
    # fmt: on
    """Choose the best round on validation, calibrate it, and judge all rounds on the test split."""
    import shutil
    from pathlib import Path

    from chexradinet.config.parameters import Assessment
    from chexradinet.training.evaluate import Arms, evaluate
    from chexradinet.training.processes import check_accelerator

    check_accelerator(accelerator_type, accelerators)
    given = Assessment(**settings)
    later = (round_1, round_2, round_3, round_4, round_5, round_6, round_7, round_8)
    outcome = evaluate(
        Path(dataset.path),
        Arms(
            rounds=[Path(model.path) for model in (round_0, *later) if model is not None],
            control=None if control is None else Path(control.path),
            permuted=None if permuted is None else Path(permuted.path),
        ),
        best=Path(best.path),
        target=Path(evaluation.path),
        config=given.evaluation,
        regions=given.regions,
        radiomics=given.radiomics,
    )
    shutil.copyfile(Path(evaluation.path) / "report.html", report.path)
    for name, value in outcome.headline().items():
        metrics.log_metric(name, value)
    roc.log_roc_curve(*outcome.pooled_roc())
    best.metadata["round"] = outcome.best_round
