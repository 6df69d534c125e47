"""Models that nobody here designed: BERT, GPT-2 and ViT as `transformers` builds them, tiny, with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import gradfuse
from gradfuse.converters import convert

STEPS, BATCH, RATE = 20, 6, 0.05
EAGER = {"attn_implementation": "eager"}


class _Language(nn.Module):
    """GPT-2 with its logits as [batch, words, positions]: the loss takes the classes on axis 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(tokens).logits
        return logits.transpose(1, 2)


def bert() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A classifier of sequences of 8 tokens."""
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=None,
        num_labels=3,
        **EAGER,
    )
    model = transformers.BertForSequenceClassification(config)
    return model, torch.randint(0, 50, (BATCH, 8)), torch.randint(0, 3, (BATCH,))


def gpt2() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A language model of sequences of 8 tokens."""
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        **EAGER,
    )
    model = _Language(transformers.GPT2LMHeadModel(config))
    tokens = torch.randint(0, 50, (BATCH, 9))
    return model, tokens[:, :-1], tokens[:, 1:]


def vit() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A classifier of images of 3x16x16."""
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
        **EAGER,
    )
    model = transformers.ViTForImageClassification(config)
    return model, torch.randn(BATCH, 3, 16, 16), torch.randint(0, 3, (BATCH,))


@pytest.mark.parametrize("build", [bert, gpt2, vit])
def test_it_converts_and_trains_as_in_pytorch(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, x, y = build()
    conversion = convert(model, example_input=x)
    assert conversion.parity is not None
    assert conversion.parity.error <= 1e-4
    trained = gradfuse.train(
        conversion.model,
        (x.numpy(), y.numpy()),
        epochs=STEPS,
        batch_size=BATCH,
        validation=0.0,
        lr=RATE,
        momentum=0.0,
    )
    ours = [epoch.first_loss for epoch in trained.history]
    theirs = _train_in_pytorch(model, x, y)
    assert theirs[-1] < 0.95 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


def _train_in_pytorch(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    """The loss of each step."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    losses = []
    for _ in range(STEPS):
        output = model(x)
        loss = nn.functional.cross_entropy(getattr(output, "logits", output), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
