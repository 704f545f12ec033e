"""One contract, run over every registered compressor."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nvila_compress import (
    Choose,
    Compressor,
    Fold,
    GridError,
    RandomChoice,
    build,
    describe,
    from_description,
    list_compressors,
    register,
    registry,
)
from nvila_compress.contract import CONTEXT
from torch import Tensor, nn

CHANNELS = 16
NAMES = [name for name in list_compressors() if not name.endswith("-256")]  # twins of the -121
GRIDS = [(6, 6), (7, 5), (1, 10), (3, 8), (1, 1)]


@pytest.fixture(scope="module", params=NAMES)
def compressor(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build(request.param, channels=CHANNELS).eval()


def draw(rows: int, columns: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    return torch.randn(batch, rows * columns, CHANNELS, generator=generator)


def context_of(compressor: Compressor, tokens: Tensor) -> dict[str, Tensor]:
    """What the compressor needs, drawn for these tokens; a row depends on the row's tokens alone."""
    sums = tokens.float().sum(dim=2)
    made = {
        "attention": (7 * sums).sin().abs().softmax(dim=1),
        "class_token": tokens.float().mean(dim=1),
        "prompt": tokens.float()[:, :1].flip(2).expand(-1, 4, -1) + torch.linspace(-1, 1, 4)[:, None],
    }
    return {key: value.to(tokens.dtype) for key, value in made.items() if key in compressor.needs}


def run(compressor: Compressor, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    return compressor(tokens, grid, **context_of(compressor, tokens))


def in_time(compressor: Compressor) -> bool:
    return "previous_frame" in compressor.needs


def promised(compressor: Compressor, batch: int, grid: tuple[int, int]) -> tuple[int, int, int]:
    """Compressors in time also say how many rows come out; all others keep the batch."""
    rows = compressor.out_frames(batch)
    return rows, compressor.out_count(grid, batch) // rows, compressor.out_channels(CHANNELS)


def test_keeps_the_protocol(compressor: nn.Module) -> None:
    assert isinstance(compressor, Compressor)
    assert isinstance(compressor, nn.Module)
    assert isinstance(compressor.ratio, float)
    assert compressor.ratio > 1
    assert compressor.needs <= CONTEXT.keys()
    assert isinstance(compressor, Fold) != isinstance(compressor, Choose)


def test_a_description_makes_the_same_compressor(compressor: nn.Module) -> None:
    written = json.loads(json.dumps(describe(compressor)))
    again = from_description(written).eval()
    assert type(again) is type(compressor)
    assert describe(again) == written
    again.load_state_dict(compressor.state_dict())
    torch.testing.assert_close(run(again, draw(6, 6)), run(compressor, draw(6, 6)), rtol=0, atol=0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_as_promised(compressor: nn.Module, grid: tuple[int, int], batch: int) -> None:
    out = run(compressor, draw(*grid, batch), grid)
    assert tuple(out.shape) == promised(compressor, batch, grid)
    assert out.isfinite().all()


def test_ratio_is_that_of_a_full_tile(compressor: nn.Module) -> None:
    assert 8 * 1024 / compressor.out_count((32, 32), 8) == pytest.approx(compressor.ratio, rel=0.07)
    if isinstance(compressor, Fold) and not in_time(compressor):
        assert compressor.out_count((32, 32)) == math.prod(compressor.out_grid((32, 32)))


def test_a_square_needs_no_grid(compressor: nn.Module) -> None:
    tokens = draw(6, 6)
    torch.testing.assert_close(run(compressor, tokens), run(compressor, tokens, (6, 6)), rtol=0, atol=0)


def test_a_wrong_grid_is_refused(compressor: nn.Module) -> None:
    for wrong in [(5, 7), (-6, -6), (0, 36)]:
        with pytest.raises(GridError, match="36 tokens do not lie on a grid of"):
            run(compressor, draw(6, 6), wrong)


def test_context_is_checked(compressor: nn.Module) -> None:
    tokens = draw(6, 6)
    context = context_of(compressor, tokens)
    with pytest.raises(ValueError, match="was given 'weather', but needs"):
        compressor(tokens, (6, 6), **context, weather=tokens)
    for key in context:
        with pytest.raises(ValueError, match=f"needs {key}: pass {key}="):
            compressor(tokens, (6, 6), **{k: v for k, v in context.items() if k != key})
        with pytest.raises(ValueError, match=f"{key} has 1 rows for 3 rows of tokens"):
            compressor(tokens, (6, 6), **{**context, key: context[key][:1]})


def test_other_axes_are_refused(compressor: nn.Module) -> None:
    for tokens in (draw(6, 6)[0], draw(6, 6)[None], draw(6, 6)[0, 0]):
        with pytest.raises(GridError, match=r"axes: pass \[tiles or frames, tokens, channels\]"):
            compressor(tokens, (6, 6))


def test_batch_equals_loop(compressor: nn.Module) -> None:
    """Rows do not see each other; compressors in time see all frames of one video, and folds whole groups of them."""
    tokens = draw(7, 5, 8)
    groups = compressor.out_frames(8) if in_time(compressor) else 8
    loop = torch.cat([run(compressor, part, (7, 5)) for part in tokens.split(8 // groups)])
    torch.testing.assert_close(run(compressor, tokens, (7, 5)), loop)


def test_gradients_flow(compressor: nn.Module) -> None:
    """Every parameter has its part in the output, and every input token that went in: all where they are folded."""
    tokens = draw(7, 5).requires_grad_()
    run(compressor, tokens, (7, 5)).square().sum().backward()
    assert tokens.grad is not None
    reached = (tokens.grad.abs().sum(dim=-1) > 0).sum().item()
    if isinstance(compressor, Choose):
        assert reached >= compressor.out_count((7, 5), 3)
    else:
        assert reached == 3 * 35
    for name, parameter in compressor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    compressor.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(compressor: nn.Module, dtype: torch.dtype) -> None:
    tokens = draw(7, 5).to(dtype)  # the same numbers in every precision, so that the same tokens are chosen
    context = context_of(compressor, tokens)
    expected = compressor(tokens.float(), (7, 5), **{key: value.float() for key, value in context.items()})
    out = compressor.to(dtype)(tokens, (7, 5), **context)
    compressor.float()
    assert out.dtype == dtype
    tolerance = {torch.float32: 0.0, torch.bfloat16: 6e-2, torch.float16: 2e-2}[dtype]
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


def fast(*names: str) -> list[Any]:
    """All names, of which only these are traced by default: the others take the same way, for seconds each."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", fast("stc-3x3", "temporal-4", "perceiver-121", "divprune-25%", "tome-25%"))
def test_compiles_to_one_graph(name: str) -> None:
    torch.compiler.reset()
    compressor = build(name, channels=CHANNELS).eval()
    compiled = torch.compile(compressor, fullgraph=True, backend="eager")
    tokens = draw(4, 9)
    context = context_of(compressor, tokens)
    torch.testing.assert_close(compiled(tokens, (4, 9), **context), compressor(tokens, (4, 9), **context))


@pytest.mark.parametrize("name", ["stc-3x3", "temporal-4", "token-learner-121"])
def test_compiled_gradients(name: str) -> None:
    torch.compiler.reset()
    compressor = build(name, channels=CHANNELS)
    compiled = torch.compile(compressor, fullgraph=True, backend="aot_eager", dynamic=False)
    eager, traced = draw(6, 6).requires_grad_(), draw(6, 6).requires_grad_()
    compressor(eager).square().sum().backward()
    compiled(traced).square().sum().backward()
    torch.testing.assert_close(traced.grad, eager.grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiles_with_inductor(name: str) -> None:
    torch.compiler.reset()
    compressor = build(name, channels=CHANNELS).eval()
    tokens = draw(7, 5)
    context = context_of(compressor, tokens)
    compiled = torch.compile(compressor, fullgraph=True)
    torch.testing.assert_close(compiled(tokens, (7, 5), **context), compressor(tokens, (7, 5), **context))


@pytest.mark.parametrize("name", ["stc-3x3", "uniform-25%"])
def test_compiled_once_for_many_grids(name: str) -> None:
    """After the first size, torch makes the token count symbolic: squares and rectangles still trace."""
    torch.compiler.reset()
    compressor = build(name)
    compiled = torch.compile(compressor, fullgraph=True, backend="eager")
    for grid in [(5, 5), (6, 6), (6, 5), (3, 7)]:
        given = None if grid[0] == grid[1] else grid
        torch.testing.assert_close(compiled(draw(*grid), given), compressor(draw(*grid), given))


@pytest.mark.parametrize("name", fast("stc-3x3", "temporal-4", "token-learner-121", "dart-25%", "tome-25%"))
def test_exports(name: str) -> None:
    """One program for any batch; in time, the number of frames is part of the program."""
    torch.manual_seed(0)
    compressor = build(name, channels=CHANNELS).eval()
    grid, tokens = (4, 9), draw(4, 9)
    context = context_of(compressor, tokens)
    batch = None if in_time(compressor) else {0: torch.export.Dim("batch", min=1, max=64)}
    shapes = {"tokens": batch, "grid": (None, None), "context": dict.fromkeys(context, batch)}
    program = torch.export.export(Named(compressor), (tokens, grid, context), dynamic_shapes=shapes)
    again = draw(*grid, 3 if in_time(compressor) else 5) + 1
    context = context_of(compressor, again)
    torch.testing.assert_close(program.module()(again, grid, context), compressor(again, grid, **context))


class Named(nn.Module):
    """The context as one argument: torch.export makes guards for keywords of ``**context`` that it cannot run."""

    def __init__(self, compressor: nn.Module) -> None:
        super().__init__()
        self.compressor = compressor

    def forward(self, tokens: Tensor, grid: tuple[int, int], context: dict[str, Tensor]) -> Tensor:
        return self.compressor(tokens, grid, **context)


@pytest.mark.parametrize("name", [name for name in NAMES if build(name, channels=CHANNELS).state_dict()])
def test_learned_ones_refuse_another_width(name: str) -> None:
    with pytest.raises(ValueError, match="tokens 16 wide, but built for 24: pass channels=16"):
        build(name, channels=24)(draw(6, 6))


def test_built_for_siglip_by_default() -> None:
    assert build("token-learner-121").out_channels(1152) == 1152


def test_any_size_can_be_built() -> None:
    assert build("stc-5x5").factor == 5
    assert build("token-learner-7", channels=8).tokens == 7
    assert build("random-64").keep == 64
    assert build("random-12.5%").keep == 0.125
    assert build("random").keep == 0.25


def test_an_unknown_name_is_refused() -> None:
    for name in ("stc-", "pixels-3x3", "perceiver-"):
        with pytest.raises(ValueError, match=f"no compressor named '{name}'|is no size in"):
            build(name)
    with pytest.raises(ValueError, match="no compressor named 'folding-9': take one of stc-2x2, stc-3x3"):
        build("folding-9")
    with pytest.raises(ValueError, match="'9' is no size in 'stc-9': write it like stc-2x2 or stc-3x3 or stc-4x4"):
        build("stc-9")
    with pytest.raises(ValueError, match="'2x3' is no size"):
        build("stc-2x3")
    with pytest.raises(ValueError, match="'half' is no size in 'random-half': write it like random-25%"):
        build("random-half")
    with pytest.raises(ValueError, match="'stc' has no usual size: write one, like stc-2x2"):
        build("stc")


# what every chooser keeps: counts, reading order, positions, a budget that can be changed

CHOOSERS = [name for name in NAMES if isinstance(build(name, channels=16), Choose)]


@pytest.fixture(params=CHOOSERS)
def chooser(request: pytest.FixtureRequest) -> Choose:
    return build(request.param, channels=16)


def select(chooser: Choose, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return chooser.select(tokens, grid, **context_of(chooser, tokens))


@pytest.mark.parametrize("keep", [1, 2, 7, 34, 35, 36, 1000, 0.01, 0.1, 0.5, 0.999, 1.0])
def test_counts_and_order(chooser: Choose, keep: int | float) -> None:
    chooser.keep = keep
    tokens = draw(7, 5, 2)
    kept, positions = select(chooser, tokens, (7, 5))
    rows = chooser.out_frames(2)
    assert kept.shape == (rows, chooser.out_count((7, 5), 2) // rows, 16)
    assert positions.shape == kept.shape[:2]
    assert (positions.diff(dim=1) > 0).all(), "in reading order, each once"
    assert ((positions >= 0) & (positions < 70 // rows)).all()
    if chooser.out_count((7, 5)) == 35 and not chooser.in_time:
        assert torch.equal(kept, tokens)


def test_fewer_tokens_than_asked_for(chooser: Choose) -> None:
    chooser.keep = 50
    for grid in [(1, 1), (1, 2), (3, 3)]:
        tokens = draw(*grid, 1)
        kept, _ = select(chooser, tokens, grid)
        assert torch.equal(kept, tokens)
        assert chooser.out_count(grid) == tokens.shape[1]


def test_bad_budgets_are_refused(chooser: Choose) -> None:
    before = chooser.keep
    for keep, message in [(0, "keep 0 < 1"), (-1, "keep -1 < 1"), (0.0, "not a share"), (1.5, "not a share"),
                          (True, "is no number"), ("25%", "is no number")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            chooser.keep = keep
    assert chooser.keep == before


def test_tokens_on_no_grid(chooser: Choose) -> None:
    """Choosers can do without one; what comes out lies in one row."""
    tokens = draw(1, 11, 2)
    kept, _ = chooser.select(tokens, **context_of(chooser, tokens))
    assert kept.shape[0] * kept.shape[1] == chooser.out_count((1, 11), 2)
    assert chooser.out_grid((1, 11))[0] == 1
    with pytest.raises(GridError, match="do not lie on a grid"):
        select(chooser, tokens, (2, 5))


# names and descriptions of users' own


class EveryOther(Choose):
    """A user's chooser, with an argument of its own."""

    def __init__(self, keep: int | float = 0.5, *, first: tuple[int, int] = (0, 1)) -> None:
        super().__init__(keep)
        self.first = first

    def score(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        return (torch.arange(tokens.shape[1]) % 2 == self.first[0]).float().expand(tokens.shape[0], -1)


@pytest.fixture
def registered() -> Iterator[None]:
    register("every-other", EveryOther)
    yield
    registry._METHODS.pop("every-other")


@pytest.mark.usefixtures("registered")
def test_a_users_own_has_a_name() -> None:
    built = build("every-other-4")
    assert built.select(draw(2, 4, 1))[1].tolist() == [[0, 2, 4, 6]]
    assert "every-other-25%" in list_compressors()
    built.keep = 0.75
    assert describe(built) == {"name": "every-other", "keep": 0.75, "first": [0, 1]}
    register("every-other", EveryOther)
    with pytest.raises(ValueError, match="the name 'every-other' is taken by EveryOther"):
        register("every-other", RandomChoice)


def test_what_cannot_be_described_is_refused() -> None:
    with pytest.raises(ValueError, match=r"EveryOther has no name: nvila_compress\.register"):
        describe(EveryOther())


@pytest.mark.usefixtures("registered")
def test_arguments_must_be_kept_and_plain() -> None:
    odd = EveryOther(first=(torch.zeros(1), 1))
    with pytest.raises(ValueError, match=r"EveryOther\.first is a Tensor: only numbers, strings and lists"):
        describe(odd)
    del odd.first
    with pytest.raises(ValueError, match=r"does not keep its argument first: set self\.first in __init__"):
        describe(odd)


def test_wrong_descriptions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no compressor named 'os\.system' among stc, "):
        from_description({"name": "os.system", "command": "true"})
    with pytest.raises(ValueError, match="no compressor named None"):
        from_description({"factor": 2})
    with pytest.raises(ValueError, match="stc takes no 'side', but factor: correct"):
        from_description({"name": "stc", "side": 2})
    with pytest.raises(ValueError, match="the description of stc is not whole: missing a required argument: 'factor'"):
        from_description({"name": "stc"})
    with pytest.raises(ValueError, match="factor 0 < 1"):
        from_description({"name": "stc", "factor": 0})


def test_a_method_that_neither_scores_nor_picks() -> None:
    with pytest.raises(TypeError, match="Idle cannot choose: write score, pick or choose"):

        class Idle(Choose):  # pyright: ignore[reportUnusedClass]
            pass

    with pytest.raises(NotImplementedError, match="Choose picks without scores, or is the bare base: write score"):
        Choose()(draw(2, 2))
