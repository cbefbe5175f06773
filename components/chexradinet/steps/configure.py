"""Kubeflow component that checks all settings of a training in seconds, before ingest."""

from typing import NamedTuple

from chexradinet.steps import worker


# fmt: off
@worker
def configure(
    source: str, models_uri: str, labels: str,
    data_format: str, image_side: int, geometry: str, voi_index: int, prefer_voi_lut: bool,
    min_age_years: float, min_side_px: int, check_inversion: bool, findings: str,
    uncertain_labels: str, validation_fraction: float, test_fraction: float, split_seed: int,
    max_reject_fraction: float, ingest_shard_size: int, ingest_workers: int,
    backbone: str, map_stride: int, batch_size: int, seed: int, epochs: int,
    learning_rate: float, initial_weights: str,
    rounds: int, compare_arms: bool, num_shards: int, region_threshold: float, bin_width: float,
    round_epochs: int, round_learning_rate: float, min_improvement: float, guidance: str,
    sharpen_weight: float, contrastive_weight: float,
    bootstrap_samples: int, target_sensitivity: str, replace_incomparable: bool,
    worker_image: str, accelerator_type: str, accelerator_count: int,
    node_selector: dict, tolerations: list,  # type: ignore[type-arg]
    ingest_memory: str, training_memory: str, heatmap_memory: str, radiomics_memory: str,
    max_rounds: int, has_arms: bool,
) -> NamedTuple("Configured", [  # type: ignore[valid-type]
    ("ingest", dict), ("train", dict), ("regions", dict), ("radiomics", dict), ("retrain", dict),
    ("evaluate", dict), ("publish", dict), ("num_shards", int), ("active", bool),
    ("accelerators", str), ("round_accelerators", str),
]):
    # fmt: on
    """Return the settings of each stage, and whether and how round 1 runs."""
    given = dict(locals())

    from chexradinet.config.parameters import Shape, TrainingSettings, nested
    from chexradinet.training.rounds import open_round

    shape = Shape(max_rounds=given.pop("max_rounds"), has_arms=given.pop("has_arms"))
    settings = nested(TrainingSettings, given)
    shape.check(settings.rounds)
    # As text, because Kubeflow's driver reads a number in a resource setting as nothing.
    accelerators = str(settings.placement.accelerator_count)
    opened = open_round(1, settings.rounds.rounds, True, 1, accelerators)
    return (
        settings.ingest.struct(),
        settings.train.struct(),
        settings.look.regions.struct(),
        settings.look.radiomics.struct(),
        settings.retrain.struct(),
        settings.evaluate.struct(),
        settings.publish.struct(),
        settings.rounds.num_shards if opened.active else 1,
        opened.active,
        accelerators,
        opened.accelerators,
    )
