"""Every weight of a model is in a group, or named as frozen; a compressor's own too."""

import pytest
import torch
from nvila_compress import TokenLearner
from nvila_model import NVILA
from nvila_train.trainee import Trainee, learning_parts, param_groups
from nvila_train.tuning import tune


@pytest.fixture
def trainee() -> Trainee:
    model = NVILA.from_pretrained("nano", dtype=torch.float32)
    channels = model.projector.get_parameter(next(name for name, _ in model.projector.named_parameters())).shape[0]
    model.compressor = TokenLearner(channels=channels, tokens=16)
    return Trainee(model)


def grouped(trainee: Trainee, rates: dict[str, float], **options: dict[str, float]) -> dict[str, float]:
    """The rate of each parameter that is in a group, by name."""
    names = {id(parameter): name for name, parameter in trainee.named_parameters()}
    groups = param_groups(trainee, rates, options.get("muon"))
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize(
    ("rates", "rate"),
    [
        ({"projector": 1e-3}, 1e-3),
        ({"projector": 1e-3, "compressor": 2e-3, "llm": 1e-5}, 2e-3),
        ({"compressor": 2e-3}, 2e-3),
        ({"llm": 1e-5}, None),
    ],
)
def test_a_compressor_learns_with_the_projector_or_at_its_own_rate(
    trainee: Trainee, rates: dict[str, float], rate: float | None
) -> None:
    found = grouped(trainee, rates)
    own = {name for name, _ in trainee.named_parameters() if name.startswith("model.compressor.")}
    assert len(own) == 5
    assert {found.get(name) for name in own} == {rate}
    learns = {name for name, parameter in trainee.named_parameters() if parameter.requires_grad}
    assert learns == found.keys(), "what is in no group is frozen"


def test_muon_trains_its_matrices(trainee: Trainee) -> None:
    found = grouped(trainee, {"projector": 1e-3}, muon={"projector": 5e-3})
    assert {rate for name, rate in found.items() if name.startswith("model.compressor.")} == {1e-3, 5e-3}


def test_what_learns_is_said(trainee: Trainee) -> None:
    param_groups(trainee, {"projector": 1e-3})
    learning, _, frozen = learning_parts(trainee).partition("; frozen: ")
    assert "compressor" in learning
    assert "projector" in learning
    assert "vision" in frozen
    assert "llm" in frozen


def test_a_tuned_model_learns_its_compressor_with_the_projector(trainee: Trainee) -> None:
    tune(trainee.model, "frozen", "frozen", projector="full")
    assert {name.split(".")[1] for name in grouped(trainee, {"projector": 1e-3})} == {"compressor", "projector"}


def test_a_compressor_without_weights_has_no_rate() -> None:
    trainee = Trainee(NVILA.from_pretrained("nano", dtype=torch.float32))
    assert {name.split(".")[1] for name in grouped(trainee, {"projector": 1e-3})} == {"projector"}
    with pytest.raises(ValueError, match="part 'compressor' has a rate, but nothing in it learns"):
        param_groups(trainee, {"compressor": 1e-3})
