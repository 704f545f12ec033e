"""Every kernel against float64, on odd shapes too, within the error that its activations are declared to cost."""

import pytest
import torch
from nvila_kernels.cpu import Arena, candidates
from nvila_kernels.cpu.kernels import int8, torch_int4
from nvila_kernels.cpu.kernels.kernel import TOLERANCE, Kernel
from nvila_kernels.cpu.measurement import sample
from nvila_kernels.cpu.shape import Shape
from nvila_kernels.quantization import Int4Codes, Int8Codes, quantize_int8

FOUR, EIGHT = candidates(4), candidates(8)


def check(kernel: Kernel, shape: Shape) -> None:
    if reason := kernel.missing():
        pytest.skip(reason)
    codes, x, _ = sample(shape)
    if isinstance(codes, Int4Codes):
        groups = codes.group_size
        scale, zero = (t.double().repeat_interleave(groups, 1)[:, : shape.k] for t in (codes.scale, codes.zero))
        exact = x.double() @ ((codes.codes.double() - zero) * scale).T
    else:
        rows, row_scale = quantize_int8(x)
        weight = codes.codes.double() * codes.scale.double()[:, None]
        exact = (rows.double() * row_scale.double()[:, None]) @ weight.T
    with torch.inference_mode():
        found = kernel.pack(codes, Arena())(x)
    assert found.dtype == torch.float32
    assert float((found - exact).norm() / exact.norm()) < TOLERANCE[kernel.activations]


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize(
    ("rows", "k", "n", "group"), [(1, 256, 48, 128), (37, 512, 130, 64), (5, 384, 7, 32), (3, 4304, 16, 128)]
)
def test_four_bits(name: str, rows: int, k: int, n: int, group: int) -> None:
    if name == "torch int4" and k % group and not FOUR[name].missing():
        with pytest.raises(ValueError, match="4304 inputs are not whole groups of 128"):
            FOUR[name].pack(sample(Shape(rows=rows, k=k, n=n, group=group))[0], Arena())
        return
    check(FOUR[name], Shape(rows=rows, k=k, n=n, group=group))


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize(("rows", "k", "n"), [(1, 256, 48), (37, 131, 7), (5, 4304, 1152)])
def test_eight_bits(name: str, rows: int, k: int, n: int) -> None:
    check(EIGHT[name], Shape(rows=rows, k=k, n=n, group=0))


@pytest.mark.parametrize("name", EIGHT)
def test_static_scales_and_empty_rows(name: str) -> None:
    """One scale for all tokens clips what lies beyond it; a token of zeros gives zeros."""
    codes, x, _ = sample(Shape(rows=6, k=64, n=8, group=0))
    assert isinstance(codes, Int8Codes)
    static = Int8Codes(codes=codes.codes, scale=codes.scale, x_scale=torch.tensor([1 / 127]))
    x[2] = 0
    exact = x.clamp(-1, 1).double() @ (codes.codes.double() * codes.scale.double()[:, None]).T
    found = EIGHT[name].pack(static, Arena())(x)
    assert float((found - exact).norm() / exact.norm()) < 0.02
    assert not found[2].any()
    assert not EIGHT[name].pack(codes, Arena())(x)[2].any()


def test_products_that_saturate_get_fewer_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sums of two products must fit 16 bits, the largest operands do; smaller weights leave more levels."""
    if reason := EIGHT["fbgemm int8"].missing():
        pytest.skip(reason)
    monkeypatch.setattr(int8, "saturates", lambda: True)
    x = torch.linspace(-1, 1, 3 * 64).reshape(3, 64)
    errors: list[float] = []
    for value in (127, -128, 90, 32):
        weight = Int8Codes(codes=torch.full((4, 64), value, dtype=torch.int8), scale=torch.ones(4))
        found = int8.pack_fbgemm(weight, Arena())(x)
        exact = x.double() @ torch.full((64, 4), float(value), dtype=torch.float64)
        errors.append(float((found - exact).norm() / exact.norm()))
        top = min(255, 32767 // int8.largest_pair(weight.codes))
        assert 2 * abs(value) * top < 2**15
    assert max(errors) < 0.02


@pytest.mark.parametrize("static", [False, True])
def test_the_worst_operands_do_not_saturate(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All activations at one end of their range, weights of one sign, and neighbours that cancel."""
    if reason := EIGHT["fbgemm int8"].missing():
        pytest.skip(reason)
    monkeypatch.setattr(int8, "saturates", lambda: True)
    rows = torch.tensor([[127] * 64, [-128] * 64, [127, -127] * 32, [127, 30] * 32, [0] * 64], dtype=torch.int8)
    weight = Int8Codes(codes=rows, scale=torch.ones(5), x_scale=torch.tensor([3 / 127]) if static else None)
    x = torch.cat([torch.full((1, 64), 3.0), torch.full((1, 64), -3.0), torch.zeros(1, 64)])
    found = int8.pack_fbgemm(weight, Arena())(x)
    torch.testing.assert_close(found, x @ rows.float().T, rtol=0.02, atol=0.02 * 3 * 127)


def test_a_pair_of_one_sign_is_what_counts() -> None:
    codes = torch.tensor([[100, -120, 50, 60, 7], [-90, -30, 127, -127, 0]], dtype=torch.int8)
    assert int8.largest_pair(codes) == 127
    assert int8.largest_pair(-codes) == 127
    assert int8.largest_pair(torch.tensor([[100, 27], [-128, -128]], dtype=torch.int8)) == 256
    assert int8.largest_pair(torch.zeros(2, 3, dtype=torch.int8)) == 1


def test_outputs_may_be_packed_at_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FOUR["torch int4"]
    if reason := kernel.missing():
        pytest.skip(reason)
    codes, x, _ = sample(Shape(rows=3, k=128, n=300, group=32))
    whole = kernel.pack(codes, Arena())(x)
    monkeypatch.setattr(torch_int4, "AT_ONCE", 128)
    assert torch.equal(kernel.pack(codes, Arena())(x), whole)


def test_unknown_groups_are_refused_by_name() -> None:
    kernel = FOUR["torch int4"]
    if reason := kernel.missing():
        pytest.skip(reason)
    codes, _, _ = sample(Shape(rows=1, k=96, n=16, group=48))
    with pytest.raises(ValueError, match="groups of 48; it takes 32"):
        kernel.pack(codes, Arena())


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvila_kernels.cpu.kernels.numba_int4.find_spec", lambda name: None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert FOUR["numba int8"].missing() == "numba and llvmlite not installed: pip install 'nvila-kernels[cpu]'"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    assert FOUR["numba int8"].missing() == "there are compiled products for processors with AVX2 only"
