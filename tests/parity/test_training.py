"""Training batches: losses, gradients and packing, against the reference."""

import pytest
import torch
from nvila_model.checkpoint.names import published_names, to_published
from nvila_model.inputs.llava import read_llava
from nvila_model.network.fusion import IGNORE
from nvila_model.network.loss import token_losses
from nvila_train.data import bins, join
from nvila_train.delta_loss.forward.log_probabilities import features, log_probabilities
from nvila_train.packing import pack

KINDS = ("train",)


@pytest.fixture
def batch(golden_case, loaded):
    """The model, and the inputs of the case as the reference labels them."""
    model = loaded(golden_case, greedy_label_matching=True)
    conversations = [read_llava(record, folder=golden_case.root) for record in golden_case.facts["instances"]]
    model.zero_grad()
    timed = golden_case.facts["loss_kind"] == "soft_cross_entropy"
    model.config.time_token_ids = golden_case.facts["time_token_ids"] if timed else []
    return model, model.processor.for_training(conversations), golden_case.facts.get("model_max_length")


def test_batch(golden_case, batch):
    model, inputs, length = batch
    expected = golden_case.tensors
    with torch.no_grad():
        fused = model.embed(inputs, side="right", max_length=length)
    assert list(fused.embeds.shape) == golden_case.facts["inputs_embeds_shape"]
    assert torch.equal(fused.mask, expected["attention_mask"].bool())
    assert torch.equal(fused.labels, expected["labels"])
    if "inputs_embeds" in expected:
        kept = fused.mask
        torch.testing.assert_close(fused.embeds[kept], expected["inputs_embeds"][kept], atol=1e-4, rtol=0)


def test_loss_and_gradients(golden_case, batch):
    model, inputs, length = batch
    facts = golden_case.facts
    loss = model.loss(inputs, max_length=length)
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-5)
    loss.backward()
    norms = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            norms |= {published: piece.norm().item() for published, piece in to_published(name, parameter.grad).items()}
    wanted = {plain(name): norm for name, norm in facts["grad_norms"].items()}
    assert norms.keys() == wanted.keys()
    for name, norm in wanted.items():
        assert norms[name] == pytest.approx(norm, rel=1e-4, abs=1e-6), name
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    assert total == pytest.approx(facts["total_grad_norm"], rel=1e-4)
    untouched = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    idle = {name for part in untouched for name in published_names(part)} | set(model.unused)
    assert idle >= {plain(name) for name in facts["no_grad_parameters"]}


@torch.no_grad()
def test_losses_of_tokens_and_samples(golden_case, batch):
    model, inputs, length = batch
    facts, expected = golden_case.facts, golden_case.tensors
    fused = model.embed(inputs, side="right", max_length=length)
    losses = token_losses(model.hidden(fused), fused.labels, model.llm.logits)
    learnt = fused.labels[:, 1:] != IGNORE
    torch.testing.assert_close(losses, expected["token_cross_entropy"][learnt], atol=2e-4, rtol=0)
    assert losses.mean().item() == pytest.approx(facts["cross_entropy"], rel=1e-5)
    assert learnt.sum(1).tolist() == facts["per_sample_tokens"]
    for sample, wanted in zip(losses.split(facts["per_sample_tokens"]), facts["per_sample_cross_entropy"], strict=True):
        assert sample.mean().item() == pytest.approx(wanted, rel=1e-5)


@torch.no_grad()
def test_log_probabilities_of_samples(golden_case, batch):
    """What DeltaLoss scores: every conversation for itself, whichever go through the language model together."""
    model, _, length = batch
    facts = golden_case.facts
    if length is not None:
        pytest.skip("the reference cuts these samples; scores are of whole ones")
    conversations = [read_llava(record, folder=golden_case.root) for record in facts["instances"]]
    samples = [model.processor.for_training(each) for each in conversations]
    found = log_probabilities(model, samples, features(model, samples), positions=1024)
    assert [score.tokens for score in found] == facts["per_sample_tokens"]
    for score, wanted in zip(found, facts["per_sample_cross_entropy"], strict=True):
        assert -score.total / score.tokens == pytest.approx(wanted, rel=1e-5)


@torch.no_grad()
def test_packed(golden_case, batch):
    """One row of all samples; the reference's dummy token at the end is not there."""
    model, inputs, length = batch
    facts, expected = golden_case.facts, golden_case.tensors
    packed = pack(model.embed(inputs, side="right", max_length=length))
    total = sum(facts["packed"]["seqlens"])
    assert facts["packed"]["length"] == total + 1
    assert torch.equal(packed.segments[0].bincount(), torch.tensor(facts["packed"]["seqlens"]))
    assert torch.equal(packed.labels, expected["packed.labels"][:, :total])
    assert torch.equal(packed.positions, expected["packed.position_ids"][:, :total])
    hidden = model.llm(packed.embeds, positions=packed.positions, mask=packed.mask)
    loss = model.label_losses(hidden, packed.labels).mean()
    assert loss.item() == pytest.approx(facts["packed"]["loss"], rel=1e-5)


@torch.no_grad()
def test_packed_in_budgets(golden_case, batch):
    """Processed one by one, packed into rows of a budget: the loss that the reference has in one row."""
    model, _, length = batch
    facts = golden_case.facts
    if length is not None:
        pytest.skip("packing cuts nothing: a sample beyond the budget is left out instead")
    conversations = [read_llava(record, folder=golden_case.root) for record in facts["instances"]]
    alone = [model.processor.for_training(conversation) for conversation in conversations]
    lengths = [sum(inputs.token_counts(model.image_tokens, model.video_tokens)) for inputs in alone]
    assert lengths == facts["packed"]["seqlens"]
    for budget in (max(lengths), sum(sorted(lengths)[:2]), sum(lengths)):
        rows = bins(lengths, max(budget, max(lengths)))
        found = {}
        for row in rows:
            packed = pack(model.embed(join([alone[place] for place in row]), side="right"))
            hidden = model.llm(packed.embeds, positions=packed.positions, mask=packed.mask)
            losses = model.label_losses(hidden, packed.labels)
            tokens = [facts["per_sample_tokens"][place] for place in row]
            found |= dict(zip(row, losses.split(tokens), strict=True))
        mean = torch.cat([found[place] for place in range(len(alone))]).mean()
        assert mean.item() == pytest.approx(facts["packed"]["loss"], rel=1e-5)


def plain(name: str) -> str:
    """Upstream keeps the vision tower in a wrapper of the same name, which its files do not show."""
    return name.replace("vision_tower.vision_tower.", "vision_tower.")
