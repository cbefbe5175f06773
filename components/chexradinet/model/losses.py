"""The three terms of the training loss, their mixture, and the heads of the contrastive term.

All terms are means, all keep the graph. The heads bring radiomics and image embeddings into one
space; they are used in training only and travel in the bundle, so that a later round continues
with them.

L = (1 - s - c) * classification + s * entropy + c * contrastive; the weights are those of
`GuidanceConfig`.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from chexradinet.config import GuidanceConfig
from chexradinet.model.resnet import Prediction, placed

NUM_RADIOMICS = 102
"""Features of a region: pyradiomics' seven 2D classes."""
HIDDEN_SIZE = 128
EMBEDDING_SIZE = 64


class Pairs(NamedTuple):
    """Regions of a batch, P of them, as both heads see them."""

    image_embeddings: Tensor
    """The region's image, shape (P, D); an image with two regions is there twice."""
    radiomics_embeddings: Tensor
    """The region's features, shape (P, D)."""
    owners: Tensor
    """Which image a region lies in, int64 (P,)."""


def masked_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy, averaged over the known labels.

    Args:
        logits: Shape (B, F).
        labels: 1, 0 or NaN for unknown, shape (B, F); best on the host, so that no accelerator has
            to be waited for.

    Returns:
        A scalar; 0 if nothing is known.
    """
    known = _indices(~labels.isnan(), logits.device)
    return _mean(
        functional.binary_cross_entropy_with_logits(
            logits.flatten()[known].float(),
            placed(labels.flatten(), logits.device)[known].float(),
            reduction="none",
        )
    )


def map_entropy(maps: Tensor, labels: Tensor) -> Tensor:
    """Return how spread out the maps of the labelled findings are, in [0, 1].

    The map's softmax over its cells is a distribution; its entropy, divided by that of the uniform
    one, is 1 for a flat map and 0 for a single cell. Maps of absent and unknown findings take no
    part.

    Args:
        maps: Class activation maps, shape (B, F, h, w).
        labels: 1, 0 or NaN, shape (B, F); best on the host.

    Returns:
        The mean over the positives, a scalar; 0 if there is none.
    """
    # (positives, cells)
    chosen = maps.flatten(0, 1)[_indices(labels == 1, maps.device)].flatten(1).float()
    log_share = chosen.log_softmax(1)
    entropy = -(log_share.exp() * log_share).sum(1)
    return _mean(entropy / math.log(max(chosen.shape[1], 2)))


def nt_xent(
    image_embeddings: Tensor,
    radiomics_embeddings: Tensor,
    temperature: float,
    owners: Tensor | None = None,
) -> Tensor:
    """Return the normalised, temperature-scaled cross-entropy of 2P views, by cosine similarity.

    The positive of each view is the other view of its row; the views of other rows are negatives.

    Args:
        image_embeddings: Shape (P, D). Rows may repeat an image that has several regions.
        radiomics_embeddings: Shape (P, D).
        temperature: Above 0.
        owners: The image of each row, (P,). If given, views of one image are never negatives of
            each other: an image is no negative of itself.

    Returns:
        A scalar; 0 if no view has a negative, as for P = 1.

    Source: Chen et al. 2020, arXiv:2002.05709, equation 1.
    """
    views = functional.normalize(torch.cat((image_embeddings, radiomics_embeddings)).float(), dim=1)
    num_pairs = len(image_embeddings)
    similarity = views @ views.T / temperature  # (2P, 2P)
    itself = torch.eye(2 * num_pairs, dtype=torch.bool, device=views.device)
    partner = torch.arange(2 * num_pairs, device=views.device).roll(num_pairs)[:, None]
    left_out = itself
    if owners is not None:
        twice = torch.cat((owners, owners))
        left_out = (twice[:, None] == twice) & ~itself.roll(num_pairs, dims=1)
    similarity = similarity.masked_fill(left_out, -torch.inf)
    return (
        _mean(similarity.logsumexp(1) - similarity.gather(1, partner)[:, 0])
        if num_pairs
        else views.sum()
    )


def guided_loss(
    prediction: Prediction, labels: Tensor, config: GuidanceConfig, pairs: Pairs | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mix the terms that a recipe names.

    Args:
        prediction: Outputs for a batch.
        labels: 1, 0 or NaN, shape (B, F).
        config: Recipe and weights; the weight of a term that the recipe does not name is 0.
        pairs: Regions of the batch; None if it has none.

    Returns:
        The loss to minimise, and its parts `classification`, `entropy` and `contrastive`, as far
        as they take part, detached and unweighted.
    """
    classification = masked_bce(prediction.logits, labels)
    parts = {"classification": classification.detach()}
    sharpen = config.sharpen_weight if config.sharpens else 0.0
    contrast = config.contrastive_weight if config.contrasts else 0.0
    total = (1 - sharpen - contrast) * classification
    if config.sharpens:
        entropy = map_entropy(prediction.maps, labels)
        parts["entropy"] = entropy.detach()
        total = total + sharpen * entropy
    if config.contrasts and pairs is not None:
        contrastive = nt_xent(
            pairs.image_embeddings, pairs.radiomics_embeddings, config.temperature, pairs.owners
        )
        parts["contrastive"] = contrastive.detach()
        total = total + contrast * contrastive
    return total, parts


def _indices(chosen: Tensor, device: torch.device) -> Tensor:
    """Return the places in the flattened array where it is true, on a device."""
    places = chosen.flatten().nonzero()[:, 0]
    return placed(places, device) if places.device != device else places


def _mean(values: Tensor) -> Tensor:
    """Return the mean; of nothing, a zero that keeps the graph."""
    return values.sum() / max(values.numel(), 1)


class _Projection(nn.Module):
    """Embeddings of images, or of radiomics: two linear layers with GELU between them."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_inputs, HIDDEN_SIZE)
        self.out = nn.Linear(HIDDEN_SIZE, EMBEDDING_SIZE)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return embeddings, shape (P, 64), of inputs, shape (P, inputs)."""
        embedding: Tensor = self.out(nn.functional.gelu(self.hidden(inputs)))
        return embedding

    if TYPE_CHECKING:
        __call__ = forward


class GuidanceHeads(nn.Module):
    """Both heads of the contrastive term."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.image = _Projection(num_channels)
        self.radiomics = _Projection(NUM_RADIOMICS)


def build_heads(num_channels: int, seed: int) -> GuidanceHeads:
    """Make heads with random weights; equal seeds give equal weights.

    Args:
        num_channels: C of the network's embedding.
        seed: Random seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GuidanceHeads(num_channels)
