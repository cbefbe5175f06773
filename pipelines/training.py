"""The training pipeline: ingest, round 0, guided rounds, evaluation, publication.

The loop is unrolled when compiled and gated when run (ADR 0002): each round is a sub-pipeline that
passes its model on untouched once `rounds` is reached or validation stops improving.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from chexradinet.config import MAX_ROUNDS_LIMIT, require
from chexradinet.steps.configure import configure
from chexradinet.steps.evaluate import evaluate
from chexradinet.steps.ingest import ingest
from chexradinet.steps.publish import publish
from chexradinet.steps.train import train
from chexradinet.steps.worker import WORKER_IMAGE
from pipelines.describe import description_of
from pipelines.resources import (
    TRAINING,
    Placement,
    on_accelerator,
    on_processor,
    with_archive,
    with_checkpoints,
    with_deidentification,
    with_store,
)
from pipelines.rounds import ARMS, guided_round

PIPELINE_NAME = TRAINING
DEFAULT_MAX_ROUNDS = 4
DEFAULT_ROUNDS = 2
SHARDS_OF_ALL_ROUNDS = 16
"""Limit for what is listed of a run: Argo keeps all of it in one object of at most 1 MiB."""
EVERY_NODE: dict[str, str] = {}
NO_TOLERATION: list[dict[str, str]] = []


def max_shards(max_rounds: int) -> int:
    """Return the largest number of shards of a round in a pipeline of so many rounds."""
    return SHARDS_OF_ALL_ROUNDS // max(1, max_rounds)


def training_pipeline(
    max_rounds: int = DEFAULT_MAX_ROUNDS, has_arms: bool = True
) -> Callable[..., Any]:
    """Return the training pipeline for at most this many guided rounds.

    Args:
        max_rounds: Number of rounds that there are tasks for.
        has_arms: Whether there are tasks for the control arm and the permuted arm.

    Raises:
        ConfigError: `max_rounds` is not in [0, MAX_ROUNDS_LIMIT].
    """
    require(
        0 <= max_rounds <= MAX_ROUNDS_LIMIT,
        "max_rounds",
        max_rounds,
        f"in [0, {MAX_ROUNDS_LIMIT}]; each round adds a sub-pipeline",
    )
    has_arms = has_arms and max_rounds > 0
    guided_rounds = [guided_round(number, has_arms) for number in range(1, max_rounds + 1)]

    def training(
        source: str,
        models_uri: str,
        data_format: str = "nih",
        findings: str = "",
        image_side: int = 224,
        geometry: str = "squash",
        uncertain_labels: str = "ignore",
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        max_reject_fraction: float = 0.5,
        labels: str = "",
        test_fraction: float = 0.1,
        voi_index: int = 0,
        min_age_years: float = 18.0,
        check_inversion: bool = True,
        ingest_workers: int = 0,
        ingest_shard_size: int = 4096,
        backbone: str = "resnet50",
        map_stride: int = 16,
        initial_weights: str = "",
        epochs: int = 10,
        batch_size: int = 16,
        learning_rate: float = 2e-3,
        seed: int = 0,
        rounds: int = min(DEFAULT_ROUNDS, max_rounds),
        round_epochs: int = 3,
        round_learning_rate: float = 1e-3,
        min_improvement: float = 0.0,
        guidance: str = "sharpen+contrastive",
        sharpen_weight: float = 0.10,
        contrastive_weight: float = 0.05,
        compare_arms: bool = has_arms,
        num_shards: int = 0,
        region_threshold: float = 0.6,
        bin_width: float = 8.0,
        bootstrap_samples: int = 1000,
        target_sensitivity: str = "0.9",
        replace_incomparable: bool = False,
        worker_image: str = WORKER_IMAGE,
        accelerator_type: str = "nvidia.com/gpu",
        accelerator_count: int = 1,
        node_selector: dict = EVERY_NODE,  # type: ignore[type-arg]
        tolerations: list = NO_TOLERATION,  # type: ignore[type-arg]
        ingest_memory: str = "8Gi",
        training_memory: str = "16Gi",
        heatmap_memory: str = "8Gi",
        radiomics_memory: str = "4Gi",
    ) -> str:
        """Train ChexRadiNet on labelled chest X-rays and publish the best round.

        Args:
            source: Folder or s3:// prefix of the X-rays and their label table.
            models_uri: Folder or s3:// prefix that models are published under.
            data_format: Convention of the source: nih, csv, chexpert, mimic, rsna or dicom.
            findings: Findings to learn, comma separated and in order; empty takes all of the table.
            image_side: Side of the model's square input, in pixels.
            geometry: squash scales each axis on its own, as NIH did; pad keeps the proportions.
            uncertain_labels: What a label of -1 becomes: ignore, ones or zeros.
            validation_fraction: Part of the training patients that validates, where none is given.
            split_seed: Seed of that part; it is recorded in the data set.
            max_reject_fraction: Rejected part of the source above which the run fails.
            labels: Folder or s3:// prefix of the label tables; empty where they lie in the source.
            test_fraction: Part of all patients that tests, where the table names no split at all.
            voi_index: Which of several windows of a DICOM file to apply, from 0.
            min_age_years: Youngest patient of a DICOM file; 0 takes all. Pictures are all taken.
            check_inversion: Reject DICOM images that contradict their header's polarity.
            ingest_workers: Processes that decode; 0 takes what processors and memory allow.
            ingest_shard_size: Images after which a killed ingest can go on.
            backbone: resnet18, resnet34, resnet50 or resnet18-narrow.
            map_stride: Input pixels a heatmap cell covers: 8, 16 or 32. Finer locates better.
            initial_weights: torchvision state dict to start from; empty starts at random.
            epochs: Passes over the training images in round 0.
            batch_size: Images a training step.
            learning_rate: Peak learning rate of round 0.
            seed: Seed of weights, order, augmentation and bootstrap.
            rounds: Guided rounds to run at most; the pipeline is compiled for a largest number.
            round_epochs: Passes over the training images in each guided round.
            round_learning_rate: Peak learning rate of the guided rounds.
            min_improvement: Rise of the validation mean AUROC without which no round follows.
            guidance: sharpen+contrastive, sharpen, contrastive or none.
            sharpen_weight: Weight of the entropy of the labelled findings' maps.
            contrastive_weight: Weight of the image-radiomics contrast.
            compare_arms: Train the control arm and the permuted-radiomics arm beside every round.
            num_shards: Parts that heatmaps and radiomics are spread over; 0 takes one per 2,500
                training images.
            region_threshold: Fraction of a map's maximum that its region reaches, in (0, 1).
            bin_width: Width of a radiomics grey-level bin on the 8-bit range.
            bootstrap_samples: Resamples of the patients for the 95% intervals.
            target_sensitivity: Target of the operating thresholds on validation, then others by
                finding: 0.9,Nodule=0.8.
            replace_incomparable: Publish also where the champion knows other findings.
            worker_image: Image of every step, with a tag or a digest.
            accelerator_type: Kubernetes name of the accelerator; empty asks for none.
            accelerator_count: Accelerators for each training, heatmap and evaluation step.
            node_selector: Node labels that accelerator steps need, as a JSON object.
            tolerations: Tolerations of accelerator steps, as a JSON list.
            ingest_memory: Memory of the ingest step.
            training_memory: Memory of each training and evaluation step.
            heatmap_memory: Memory of each heatmap shard.
            radiomics_memory: Memory of each radiomics shard.
        """
        placement = Placement(worker_image, accelerator_type, node_selector, tolerations)
        configured = configure(
            rounds=rounds,
            compare_arms=compare_arms,
            num_shards=num_shards,
            max_rounds=max_rounds,
            has_arms=has_arms,
            max_shards=max_shards(max_rounds),
            accelerator_count=accelerator_count,
        )
        on_processor(configured, placement, "256Mi")
        accelerators = configured.outputs["accelerators"]
        ingested = ingest(
            source=source,
            data_format=data_format,
            findings=findings,
            image_side=image_side,
            geometry=geometry,
            uncertain_labels=uncertain_labels,
            validation_fraction=validation_fraction,
            split_seed=split_seed,
            max_reject_fraction=max_reject_fraction,
            labels=labels,
            test_fraction=test_fraction,
            voi_index=voi_index,
            min_age_years=min_age_years,
            check_inversion=check_inversion,
            num_workers=ingest_workers,
            shard_size=ingest_shard_size,
        )
        with_checkpoints(on_processor(ingested.after(configured), placement, ingest_memory))
        with_deidentification(with_archive(ingested))
        # The cache key holds the source's address, not its files: a cached ingest would be stale.
        ingested.set_caching_options(enable_caching=False)
        dataset = ingested.outputs["dataset"]
        first = train(
            backbone=backbone,
            map_stride=map_stride,
            initial_weights=initial_weights,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            rounds=rounds,
            train_images=ingested.outputs["Output"],
            num_shards=num_shards,
            max_shards=max_shards(max_rounds),
            accelerator_type=accelerator_type,
            accelerators=accelerators,
            dataset=dataset,
        )
        with_checkpoints(on_accelerator(first, placement, training_memory, accelerators))
        opened, latest = first.outputs, {"model": first.outputs["model"]}
        models = {"round_0": latest["model"]}
        for number, guided in enumerate(guided_rounds, start=1):
            done = guided(
                rounds=rounds,
                active=opened["active"],
                shards=opened["shards"],
                num_shards=first.outputs["num_shards"],
                guidance=guidance,
                sharpen_weight=sharpen_weight,
                contrastive_weight=contrastive_weight,
                region_threshold=region_threshold,
                bin_width=bin_width,
                epochs=round_epochs,
                batch_size=batch_size,
                learning_rate=round_learning_rate,
                seed=seed,
                min_improvement=min_improvement,
                worker_image=worker_image,
                accelerator_type=accelerator_type,
                accelerators=opened["accelerators"],
                node_selector=node_selector,
                tolerations=tolerations,
                training_memory=training_memory,
                heatmap_memory=heatmap_memory,
                radiomics_memory=radiomics_memory,
                dataset=dataset,
                **latest,
            )
            done.set_display_name(f"round {number}: heatmaps, radiomics, training")
            opened = done.outputs
            latest = {name: done.outputs[name] for name in (ARMS if has_arms else ["model"])}
            models[f"round_{number}"] = latest["model"]
        judged = evaluate(
            region_threshold=region_threshold,
            bin_width=bin_width,
            bootstrap_samples=bootstrap_samples,
            target_sensitivity=target_sensitivity,
            seed=seed,
            accelerator_type=accelerator_type,
            accelerators=accelerators,
            dataset=dataset,
            **models,
            **{name: latest[name] for name in latest if name != "model"},
        )
        on_accelerator(judged, placement, training_memory, accelerators)
        published = publish(
            models_uri=models_uri,
            replace_incomparable=replace_incomparable,
            best=judged.outputs["best"],
            evaluation=judged.outputs["evaluation"],
            dataset=dataset,
        )
        with_store(on_processor(published, placement, "8Gi"))
        published.set_caching_options(enable_caching=False)
        return published.outputs["Output"]  # type: ignore[no-any-return]

    described = dsl.pipeline(
        name=PIPELINE_NAME,
        display_name="ChexRadiNet training",
        description=description_of(training, f"At most {max_rounds} guided rounds."),
    )
    return described(training)  # type: ignore[no-any-return]
