"""Guided alignment: the attention of one head learns a given word alignment (Chen et al. 2016; Garg et al. 2019).

The loss of a target token is the cross-entropy between its alignment, spread evenly over the source tokens that it is
linked with, and the attention of the head in the step that predicts the token (Chen et al. 2016, section 3; Garg et al.
2019, eq. 3). Tokens without a link have none. Like the rest of the loss it is summed, and divided by the target tokens
of the update.

The head is the first one of cross-attention in the layer `model.alignment_layer`, by default the last but one: there
the attention of trained models comes closest to an alignment (Garg et al. 2019, section 4.1), and the last layer
remains free to choose the words.

Shapes: B batch, T target length, S source length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def alignment_loss(log_weights_BTS: Tensor, links: Tensor) -> Tensor:
    """Return the cross-entropy between alignment and attention, summed over the target tokens that have links.

    Args:
        log_weights_BTS: logs of the attention; rows sum to 1 before the logarithm.
        links: row, target position and source position of each link: [links, 3], all different.
    """
    B, T, _ = log_weights_BTS.shape
    rows, tgt, src = links.unbind(dim=1)
    tokens, ones = rows * T + tgt, torch.ones(len(links), device=links.device)
    num_links = torch.zeros(B * T, device=links.device).index_add_(0, tokens, ones)
    return -(log_weights_BTS[rows, tgt, src] / num_links[tokens]).sum()
