"""One contract, run over every registered compressor."""

import math

import pytest
import torch
from nvila_compress import Compressor, GridError, build, list_compressors
from torch import Tensor, nn

CHANNELS = 16
NAMES = list_compressors()
GRIDS = [(6, 6), (7, 5), (1, 10), (3, 8), (1, 1)]


@pytest.fixture(scope="module", params=NAMES)
def compressor(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build(request.param, channels=CHANNELS).eval()


def draw(rows: int, columns: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    return torch.randn(batch, rows * columns, CHANNELS, generator=generator)


def promised(compressor: Compressor, batch: int, grid: tuple[int, int]) -> tuple[int, int, int]:
    """Compressors in time also say how many frames come out; all others keep the batch."""
    frames = getattr(compressor, "out_frames", lambda count: count)
    return frames(batch), math.prod(compressor.out_grid(grid)), compressor.out_channels(CHANNELS)


def in_time(compressor: Compressor) -> bool:
    return hasattr(compressor, "out_frames")


def test_names_are_sorted_into_families() -> None:
    families = {name.rsplit("-", 1)[0] for name in NAMES}
    assert families == {"stc", "temporal", "token-learner", "perceiver"}
    assert len(set(NAMES)) == len(NAMES)


def test_keeps_the_protocol(compressor: nn.Module) -> None:
    assert isinstance(compressor, Compressor)
    assert isinstance(compressor, nn.Module)
    assert isinstance(compressor.ratio, float)
    assert compressor.ratio > 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_as_promised(compressor: nn.Module, grid: tuple[int, int], batch: int) -> None:
    out = compressor(draw(*grid, batch), grid)
    assert tuple(out.shape) == promised(compressor, batch, grid)
    assert out.isfinite().all()


def test_ratio_is_that_of_a_full_tile(compressor: nn.Module) -> None:
    rows, columns = compressor.out_grid((32, 32))
    frames = compressor.out_frames(8) if in_time(compressor) else 8
    assert 8 * 1024 / (frames * rows * columns) == pytest.approx(compressor.ratio, rel=0.07)


def test_a_square_needs_no_grid(compressor: nn.Module) -> None:
    tokens = draw(6, 6)
    torch.testing.assert_close(compressor(tokens), compressor(tokens, (6, 6)), rtol=0, atol=0)


def test_a_wrong_grid_is_refused(compressor: nn.Module) -> None:
    for wrong in [(5, 7), (-6, -6), (0, 36)]:
        with pytest.raises(GridError, match="36 tokens do not lie on a grid of"):
            compressor(draw(6, 6), wrong)


def test_other_axes_are_refused(compressor: nn.Module) -> None:
    for tokens in (draw(6, 6)[0], draw(6, 6)[None], draw(6, 6)[0, 0]):
        with pytest.raises(GridError, match=r"axes: pass \[tiles or frames, tokens, channels\]"):
            compressor(tokens, (6, 6))


def test_batch_equals_loop(compressor: nn.Module) -> None:
    """Rows do not see each other; compressors in time see whole groups of them."""
    frames = 8 if in_time(compressor) else 3
    tokens = draw(7, 5, frames)
    step = frames // compressor.out_frames(frames) if in_time(compressor) else 1
    loop = torch.cat([compressor(part, (7, 5)) for part in tokens.split(step)])
    torch.testing.assert_close(compressor(tokens, (7, 5)), loop)


def test_gradients_flow(compressor: nn.Module) -> None:
    """Every input token and every parameter has its part in the output."""
    tokens = draw(7, 5).requires_grad_()
    compressor(tokens, (7, 5)).square().sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().sum(dim=-1) > 0).all()
    for name, parameter in compressor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    compressor.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(compressor: nn.Module, dtype: torch.dtype) -> None:
    tokens = draw(7, 5)
    expected = compressor(tokens, (7, 5))
    out = compressor.to(dtype)(tokens.to(dtype), (7, 5))
    compressor.float()
    assert out.dtype == dtype
    tolerance = {torch.float32: 0.0, torch.bfloat16: 6e-2, torch.float16: 8e-3}[dtype]
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "name",  # the 256-token twins trace the same code, slowly
    [pytest.param(name, marks=pytest.mark.slow if name.endswith("-256") else ()) for name in NAMES],
)
def test_compiles_to_one_graph(name: str) -> None:
    torch.compiler.reset()
    compressor = build(name, channels=CHANNELS).eval()
    compiled = torch.compile(compressor, fullgraph=True, backend="eager")
    tokens = draw(4, 9)
    torch.testing.assert_close(compiled(tokens, (4, 9)), compressor(tokens, (4, 9)))


@pytest.mark.parametrize("name", ["stc-3x3", "temporal-4", "token-learner-121"])
def test_compiled_gradients(name: str) -> None:
    torch.compiler.reset()
    compressor = build(name, channels=CHANNELS)
    compiled = torch.compile(compressor, fullgraph=True, backend="aot_eager", dynamic=False)
    eager, traced = draw(6, 6).requires_grad_(), draw(6, 6).requires_grad_()
    compressor(eager).square().sum().backward()
    compiled(traced).square().sum().backward()
    torch.testing.assert_close(traced.grad, eager.grad)


def test_compiles_with_inductor() -> None:
    torch.compiler.reset()
    compressor = build("stc-3x3")
    tokens = draw(7, 5)
    compiled = torch.compile(compressor, fullgraph=True)
    torch.testing.assert_close(compiled(tokens, (7, 5)), compressor(tokens, (7, 5)))


def test_compiled_once_for_many_grids() -> None:
    """After the first size, torch makes the token count symbolic: squares and rectangles still trace."""
    torch.compiler.reset()
    compressor = build("stc-3x3")
    compiled = torch.compile(compressor, fullgraph=True, backend="eager")
    for grid in [(5, 5), (6, 6), (6, 5), (3, 7)]:
        given = None if grid[0] == grid[1] else grid
        torch.testing.assert_close(compiled(draw(*grid), given), compressor(draw(*grid), given))


def test_exports(compressor: nn.Module) -> None:
    """One program for any batch; in time, the number of frames is part of the program."""
    grid = (4, 9)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = None if in_time(compressor) else {"tokens": {0: batch}, "grid": (None, None)}
    program = torch.export.export(compressor, (draw(*grid), grid), dynamic_shapes=shapes)
    count = 3 if in_time(compressor) else 5
    out = program.module()(draw(*grid, count), grid)
    torch.testing.assert_close(out, compressor(draw(*grid, count), grid))


def test_state_dict_returns(compressor: nn.Module) -> None:
    name = next(name for name in NAMES if same(build(name, channels=CHANNELS), compressor))
    again = build(name, channels=CHANNELS).eval()
    again.load_state_dict(compressor.state_dict())
    torch.testing.assert_close(again(draw(6, 6)), compressor(draw(6, 6)), rtol=0, atol=0)


def same(a: nn.Module, b: nn.Module) -> bool:
    return type(a) is type(b) and repr(a) == repr(b) and a.ratio == b.ratio


@pytest.mark.parametrize("name", [name for name in NAMES if build(name, channels=4).state_dict()])
def test_learned_ones_refuse_another_width(name: str) -> None:
    with pytest.raises(ValueError, match="tokens 16 wide, but built for 24: pass channels=16"):
        build(name, channels=24)(draw(6, 6))


def test_built_for_siglip_by_default() -> None:
    assert build("token-learner-121").out_channels(1152) == 1152


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no compressor named 'stc-9': take one of stc-2x2, stc-3x3"):
        build("stc-9")
