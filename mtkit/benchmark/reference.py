"""Baseline training loops: `nn.Transformer` or Marian, cross-entropy over all positions, AdamW.

They are written as tutorials do: PyTorch's own layers with their fused attention kernel, `nn.Dropout`, logits of the
whole batch, `ignore_index` for padding, the fused optimizer. They get the same batches as mtkit.

Shapes: B batch, S source length, T target length, D model width, V vocabulary.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkit.config.sections import ModelConfig, TrainingConfig
from mtkit.data.batching import Batch
from mtkit.interop.hugging_face_engine import import_transformers
from mtkit.model.positions import sinusoids

_IGNORED = -100


class _ReferenceTransformer(nn.Module):
    """`nn.Transformer` with tied embeddings and sinusoidal positions, of the config's shape."""

    def __init__(self, config: ModelConfig, vocab_size: int, pad: int) -> None:
        super().__init__()
        self.pad = pad
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # norm_first disables nested tensors, which training does not use
            self.transformer = nn.Transformer(
                config.d_model,
                config.heads,
                config.encoder_layers,
                config.decoder_layers,
                config.feed_forward,
                config.dropout,
                norm_first=config.norm_position == "pre",
                batch_first=True,
                bias=config.bias,
            )
        self._set_dropout(config)

    def _set_dropout(self, config: ModelConfig) -> None:
        """Set the dropout of attention weights and activations; PyTorch's layers take one probability for all."""
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = config.attention_dropout
            elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout.p = config.activation_dropout

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Embed ids: [B, T] to [B, T, D]."""
        D = self.embedding.embedding_dim
        positions = sinusoids(torch.arange(ids_BT.shape[1], device=ids_BT.device), D)
        embedded: Tensor = self.dropout(self.embedding(ids_BT) * math.sqrt(D) + positions)
        return embedded

    def forward(self, src_BS: Tensor, tgt_BT: Tensor) -> Tensor:
        """Return the logits of all positions: [B, T, V]."""
        mask = nn.Transformer.generate_square_subsequent_mask(tgt_BT.shape[1], device=tgt_BT.device).isinf()
        padding = src_BS == self.pad
        hidden_BTD = self.transformer(
            self.embed(src_BS),
            self.embed(tgt_BT),
            tgt_mask=mask,
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return F.linear(hidden_BTD, self.embedding.weight)


class ReferenceLoop:
    """Trains `nn.Transformer`, with autocast to the given precision."""

    def __init__(
        self,
        model: ModelConfig,
        training: TrainingConfig,
        vocab_size: int,
        pad: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.training, self.device, self.dtype = training, device, dtype
        self.model = self.make_model(model, vocab_size, pad).to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=True,
        )

    @staticmethod
    def make_model(config: ModelConfig, vocab_size: int, pad: int) -> nn.Module:
        """Build a model from source and target ids to logits [B, T, V]."""
        return _ReferenceTransformer(config, vocab_size, pad)

    def step(self, batches: list[Batch]) -> float:
        """Make one update and return the loss per target token."""
        self.optimizer.zero_grad(set_to_none=True)
        num_targets = sum(batch.num_targets for batch in batches)
        total = 0.0
        for batch in batches:
            src_BS, tgt_in_BT, tgt_out_BT, mask_BT = (
                torch.from_numpy(array).to(self.device)
                for array in (batch.src, batch.tgt_in, batch.tgt_out, batch.tgt_mask)
            )
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                logits_BTV = self.model(src_BS, tgt_in_BT)
            loss = F.cross_entropy(
                logits_BTV.flatten(0, 1).float(),
                tgt_out_BT.masked_fill(~mask_BT, _IGNORED).flatten(),
                ignore_index=_IGNORED,
                label_smoothing=self.training.label_smoothing,
                reduction="sum",
            )
            (loss / num_targets).backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm or math.inf)
        self.optimizer.step()
        return total / num_targets


class _MarianReference(nn.Module):
    """Hugging Face's Marian with the config's shape. It always has post-norm and biases."""

    def __init__(self, config: ModelConfig, vocab_size: int, pad: int) -> None:
        """Build the model.

        Raises:
            ConfigError: If the package is not installed.
        """
        super().__init__()
        transformers = import_transformers()
        self.pad = pad
        shape = transformers.MarianConfig(
            vocab_size=vocab_size,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.heads,
            decoder_attention_heads=config.heads,
            encoder_ffn_dim=config.feed_forward,
            decoder_ffn_dim=config.feed_forward,
            activation_function="relu",
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            scale_embedding=True,
            share_encoder_decoder_embeddings=True,
            tie_word_embeddings=True,
            pad_token_id=pad,
            decoder_start_token_id=pad,
            use_cache=False,
        )
        self.marian = transformers.MarianMTModel(shape)

    def forward(self, src_BS: Tensor, tgt_BT: Tensor) -> Tensor:
        """Return the logits of all positions: [B, T, V]."""
        output = self.marian(
            input_ids=src_BS, attention_mask=(src_BS != self.pad).long(), decoder_input_ids=tgt_BT
        )
        logits_BTV: Tensor = output.logits
        return logits_BTV


class MarianLoop(ReferenceLoop):
    """Trains Hugging Face's Marian in the same loop."""

    @staticmethod
    def make_model(config: ModelConfig, vocab_size: int, pad: int) -> nn.Module:
        """Build a model from source and target ids to logits [B, T, V].

        Raises:
            ConfigError: If the package is not installed.
        """
        return _MarianReference(config, vocab_size, pad)
