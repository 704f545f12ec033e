"""Cross-entropy some labels at a time, against torch's over all of them."""

import pytest
import torch
import torch.nn.functional as F
from nvila_model.inputs.labels import IGNORE
from nvila_model.network.loss import token_losses

WIDTH, VOCABULARY = 6, 50


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, labels and a head; 31 labels count."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 21, WIDTH, generator=generator, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (2, 21), generator=generator)
    labels[0, 3:12] = IGNORE
    head = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
    return hidden, labels, head


@pytest.mark.parametrize("chunk", [1, 7, 31, 1000])
def test_chunks_change_nothing(chunk: int):
    """Losses and gradients, those of the head too, are those of the whole."""
    hidden, labels, head = given()
    losses = token_losses(hidden, labels, lambda x: F.linear(x, head), chunk=chunk)
    weights = torch.linspace(0.1, 2, len(losses))  # labels need not count alike
    (losses * weights).sum().backward()
    whole, _, same = given()
    scores = F.linear(whole[:, :-1].double(), same.double())
    expected = F.cross_entropy(scores.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none")
    expected = expected[labels[:, 1:].flatten() != IGNORE]
    (expected * weights.double()).sum().backward()
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden.grad, whole.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.grad, same.grad, atol=1e-5, rtol=1e-5)


def test_time_tokens_go_through_chunks():
    hidden, labels, head = given()
    times = tuple(range(10, 30))
    parts, whole = (
        token_losses(hidden, labels, lambda x: F.linear(x, head), time_tokens=times, chunk=chunk) for chunk in (4, 99)
    )
    torch.testing.assert_close(parts, whole)


def test_the_scores_of_all_labels_are_never_kept():
    hidden, labels, head = given()
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = token_losses(hidden, labels, lambda x: F.linear(x, head), chunk=4)
    assert max(kept) < 4 * VOCABULARY < VOCABULARY * len(losses)
    losses.sum().backward()


def test_an_empty_chunk_is_refused():
    hidden, labels, head = given()
    with pytest.raises(ValueError, match="chunk 0 scores no label: use at least 1"):
        token_losses(hidden, labels, lambda x: F.linear(x, head), chunk=0)
