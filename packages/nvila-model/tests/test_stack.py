"""Blocks in graphs and blocks that are compiled against the same blocks in torch."""

import gc
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from time import sleep
from typing import TYPE_CHECKING, TypeAlias, cast

import pytest
import torch
from nvila_kernels import W4A16, Int4Linear, QuantPolicy, quantize_
from nvila_kernels.cpu import OptimizedLayer, Shape
from nvila_kernels.cpu.dense import DENSE4
from nvila_kernels.cpu.matmul_nbits import NBITS_FLOAT
from nvila_kernels.cpu.numba_int4 import NUMBA_INT8
from nvila_kernels.cpu.selection import Alike
from nvila_model.cpu import stacking
from nvila_model.cpu.graph_stack import GraphStack
from nvila_model.cpu.joined_layers import join_
from nvila_model.cpu.optimize import optimize_language, screened
from nvila_model.cpu.stacking import stack_of
from nvila_model.network.cache import KVCache
from nvila_model.network.qwen2 import Qwen2, causal_mask
from torch import Tensor

if TYPE_CHECKING:
    from nvila_model.cpu.compiled_stack import CompiledStack

LAYERS = 3


def floats(*_: object, **__: object) -> Alike:
    return Alike(kernel=NBITS_FLOAT.name, prompts={})


def compiled_products(*_: object, **__: object) -> Alike:
    return Alike(kernel=NUMBA_INT8.name, prompts={})


def float_prompts(shapes: Sequence[Shape], *_: object, **__: object) -> Alike:
    return Alike(kernel=NBITS_FLOAT.name, prompts=dict.fromkeys(shapes, DENSE4.name))


@pytest.fixture
def llm() -> Qwen2:
    torch.manual_seed(0)
    made = Qwen2(vocab_size=32, width=64, layers=LAYERS, heads=4, kv_heads=2, mlp_width=96, tied=True).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    quantize_(made.layers, QuantPolicy((("*", W4A16(group_size=32)),)))
    return made


Turn: TypeAlias = Callable[[], Qwen2]
"""Turns the blocks into graphs that round nothing but what they keep."""


@pytest.fixture
def outer(llm: Qwen2, monkeypatch: pytest.MonkeyPatch) -> Turn:
    """Graphs of onnxruntime, which write into a cache outside."""
    monkeypatch.setattr(stacking, "measure_alike", floats)
    monkeypatch.setattr(stacking, "GRAPH", 2**16)  # two blocks

    def turn() -> Qwen2:
        done = optimize_language(llm)
        assert [each.name for each in done] == ["stack.graphs.0", "stack.graphs.1"]
        assert isinstance(llm.stack, GraphStack)
        return llm

    return turn


@pytest.fixture
def compiled(llm: Qwen2, monkeypatch: pytest.MonkeyPatch) -> Turn:
    """Compiled functions, which round activations to 8 bits, and a cache outside."""
    if reason := NUMBA_INT8.missing():
        pytest.skip(reason)
    monkeypatch.setattr(stacking, "measure_alike", compiled_products)

    def turn() -> Qwen2:
        done = optimize_language(llm)
        assert len(done) == 4 * LAYERS
        assert {each.name for each in done} >= {
            "stack.prompts.blocks.0.self_attn.qkv_proj.layer", "stack.prompts.blocks.2.mlp.down_proj",
        }  # fmt: skip
        assert llm.stack is not None
        return llm

    return turn


@pytest.fixture(params=["outer", "compiled"])
def stacks(request: pytest.FixtureRequest) -> Turn:
    return request.getfixturevalue(request.param)


def check(llm: Qwen2, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Graphs round nothing, compiled products their activations: then words of float blocks are further away."""
    limit = 1e-3 if isinstance(llm.stack, GraphStack) else 0.1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=limit, atol=limit)


def talk(llm: Qwen2) -> list[Tensor]:
    """A prompt of two rows, one padded, then two tokens; and plain causal attention on one row."""
    embeds = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1))
    cache = llm.cache(2, 12)
    mask = causal_mask(7, 0, device=embeds.device).repeat(2, 1, 1, 1)
    mask[1, :, :, :2] = False
    mask[1, :, :2, 0] = True  # rows of padding look somewhere
    positions = torch.stack([torch.arange(7), (torch.arange(7) - 2).clamp(min=0)])
    found = [llm(embeds, positions=positions, mask=mask, cache=cache)]
    for step in range(2):
        seen = torch.cat([mask[:, :, -1:, :7], torch.ones(2, 1, 1, step + 1, dtype=torch.bool)], dim=-1)
        at = positions[:, -1:] + step + 1
        found.append(llm(embeds[:, step : step + 1], positions=at, mask=seen, cache=cache))
    wanted = torch.tensor([[False, True, True, False, False, False, True]])
    return [*found, llm(embeds[:1]), llm(embeds[:1], wanted=wanted)]


def test_says_what_the_blocks_say(llm: Qwen2, stacks: Turn) -> None:
    with torch.inference_mode():
        expected = talk(llm)
        check(llm, talk(stacks()), expected)


def test_a_prompt_in_pieces_fills_the_same_cache(llm: Qwen2, stacks: Turn) -> None:
    embeds = torch.randn(2, 9, 64)

    def read() -> tuple[Tensor, Tensor]:
        cache = cast(KVCache, llm.cache(2, 10))
        for part in (slice(0, 4), slice(4, 9)):
            last = llm(embeds[:, part], cache=cache, wanted=torch.arange(9)[part].expand(2, -1) == part.stop - 1)
        return last, torch.stack([cache.keys, cache.values])

    with torch.inference_mode():
        expected = read()
        stacks()
        check(llm, read(), expected)


def tell(llm: Qwen2, *, ahead: int = 0) -> list[Tensor]:
    """Five tokens for two rows behind a prompt, by turns with one row of another cache; positions may be others."""
    embeds = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(2))
    rows, alone = llm.cache(2, 8), llm.cache(1, 9)
    llm(embeds[:2, :3], cache=rows)
    llm(embeds[2:, :2], cache=alone)
    found: list[Tensor] = []
    for step in range(5):
        positions = torch.tensor([[3 + step], [1 + step]]) + ahead if ahead else None
        found.append(llm(embeds[:2, 3 + step, None], cache=rows, positions=positions))
        found.append(llm(embeds[2:, 2 + step, None], cache=alone))
    return found


@pytest.mark.parametrize("ahead", [0, 1, 50])
def test_tokens_are_read_where_the_last_ones_were(llm: Qwen2, stacks: Turn, ahead: int) -> None:
    """What was given for a token stays; a position may lie behind the end of the cache."""
    with torch.inference_mode():
        expected = tell(llm, ahead=ahead)
        check(llm, tell(stacks(), ahead=ahead), expected)


def test_a_mask_counts_for_its_token_alone(llm: Qwen2, stacks: Turn) -> None:
    embeds = torch.randn(2, 5, 64)
    masks = [None, torch.tensor([[1, 1], [0, 1]]), torch.tensor([[1, 0, 1]]), None, None]

    def answer() -> list[Tensor]:
        cache = llm.cache(2, 5)
        return [
            llm(embeds[:, token, None], cache=cache, mask=None if mask is None else mask[:, None, None].bool())
            for token, mask in enumerate(masks)
        ]

    with torch.inference_mode():
        expected = answer()
        stacks()
        check(llm, answer(), expected)


def test_an_answer_may_go_on_in_another_mode(llm: Qwen2, stacks: Turn) -> None:
    embeds = torch.randn(1, 4, 64)

    def answer() -> list[Tensor]:
        cache = llm.cache(1, 4)
        found: list[Tensor] = []
        for token, mode in enumerate((torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad)):
            with mode():
                found.append(llm(embeds[:, token, None], cache=cache))
        return found

    expected = answer()
    stacks()
    check(llm, answer(), expected)


def test_buffers_last_as_long_as_their_cache(stacks: Turn) -> None:
    llm = stacks()
    stack = cast(GraphStack, llm.stack)
    cache = llm.cache(1, 2)
    with torch.inference_mode():
        llm(torch.zeros(1, 1, 64), cache=cache)
        again = deepcopy(llm)(torch.ones(1, 1, 64), cache=cache)
        cache.length = 1
        assert torch.equal(llm(torch.ones(1, 1, 64), cache=cache), again)
        assert len(stack.buffers_of) == 1
        with pytest.raises(ValueError, match="position 3 is beyond the cache of 2"):
            llm(torch.zeros(1, 1, 64), cache=cache)
    del cache
    gc.collect()
    assert not stack.buffers_of


def test_refuses_rows_that_the_cache_has_not(stacks: Turn) -> None:
    llm = stacks()
    with pytest.raises(ValueError, match="2 rows for a cache of 3: make one for as many rows"):
        llm(torch.zeros(2, 1, 64), cache=llm.cache(3, 2))


def test_a_model_is_settled_once(stacks: Turn) -> None:
    with pytest.raises(ValueError, match="was settled before: load it again to choose other kernels"):
        optimize_language(stacks())


def test_states_between_the_blocks_stay_in_the_graphs(stacks: Turn) -> None:
    with pytest.raises(ValueError, match="the blocks are in graphs: use the model before it was settled"):
        stacks().hidden_states(torch.zeros(1, 2, 64))


def test_refuses_what_looks_ahead_and_what_does_not_fit(outer: Turn) -> None:
    llm = outer()
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    cache = llm.cache(1, 6)
    cache.advance(2)
    with pytest.raises(ValueError, match="position 2 of row 0 may look at 3, which lies ahead: blocks in graphs are"):
        llm(torch.zeros(1, 3, 64), mask=mask, cache=cache)
    with pytest.raises(ValueError, match="position 7 is beyond the cache of 6: make a longer cache"):
        llm(torch.zeros(1, 5, 64), cache=cache)


def test_a_head_that_is_settled_already_is_not_told_again(llm: Qwen2, stacks: Turn) -> None:
    llm.lm_head = cast(torch.nn.Linear, screened(llm.embed_tokens.weight))
    stacks()


def test_two_threads_may_ask_at_once(llm: Qwen2, stacks: Turn) -> None:
    prompts = torch.randn(8, 1, 5, 64)
    stacks()
    with torch.inference_mode():
        expected = [llm(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(torch.inference_mode()(llm), [*prompts, *prompts, *prompts]))
    for index, states in enumerate(found):
        assert torch.equal(states, expected[index % 8])


def test_two_threads_may_answer_at_once(llm: Qwen2, stacks: Turn) -> None:
    embeds = torch.randn(4, 1, 6, 64)
    stacks()

    @torch.inference_mode()
    def answer(number: int) -> Tensor:
        cache = llm.cache(1, 6)
        return torch.cat([llm(embeds[number, :, token, None], cache=cache) for token in range(6)])

    expected = [answer(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, [0, 1, 2, 3] * 4))
    for index, states in enumerate(found):
        assert torch.equal(states, expected[index % 4])


def test_lower_precision_outside_stays_outside(llm: Qwen2, stacks: Turn) -> None:
    x = torch.randn(1, 5, 64)
    with torch.inference_mode():
        expected = llm(x)
        stacks().norm.bfloat16()
        found = llm(x.bfloat16(), cache=llm.cache(1, 5))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_a_product_is_one_operator_when_compiled(llm: Qwen2, stacks: Turn) -> None:
    x = torch.randn(1, 5, 64)
    torch.compiler.reset()
    with torch.inference_mode():
        compiled = torch.compile(stacks(), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), llm(x))


def test_a_graph_cannot_be_saved(stacks: Turn) -> None:
    with pytest.raises(ValueError, match=r"stack\..* is packed for this machine and cannot be saved"):
        stacks().state_dict()


def test_blocks_stay_where_other_kernels_gain_more(llm: Qwen2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacking, "measure_alike", floats)
    assert stack_of(llm) is None  # layers that read the same are not joined
    join_(llm)
    monkeypatch.setattr(stacking, "measure_alike", lambda *_, **__: None)
    assert stack_of(llm) is None
    assert len(llm.layers) == LAYERS
    assert isinstance(optimize_language(llm)[0], OptimizedLayer)  # each layer by itself


def test_nothing_is_kept_of_the_layers(llm: Qwen2, stacks: Turn) -> None:
    join_(llm)
    layers = [weakref.ref(layer) for layer in llm.modules() if isinstance(layer, Int4Linear)]
    assert len(layers) == 4 * LAYERS
    stacks()
    gc.collect()
    assert not any(layer() for layer in layers)


def test_float_blocks_stay() -> None:
    llm = Qwen2(vocab_size=32, width=64, layers=1, heads=4, kv_heads=2, mlp_width=96)
    assert stack_of(llm) is None


def test_prompts_are_read_by_blocks_beside_the_graphs(llm: Qwen2, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 2 x 20 positions in two pieces, the second seen both ways, then a token and 2 x 3 that look back."""
    embeds = torch.randn(2, 24, 64)
    both_ways = torch.ones(2, 1, 10, 20, dtype=torch.bool)

    def answer() -> list[Tensor]:
        cache = llm.cache(2, 24)
        first = llm(embeds[:, :10], cache=cache, wanted=torch.arange(10).expand(2, -1) == 9)
        second = llm(embeds[:, 10:20], cache=cache, mask=both_ways)
        return [first, second, llm(embeds[:, 20:21], cache=cache), llm(embeds[:, 21:], cache=cache), llm(embeds)]

    monkeypatch.setattr(stacking, "measure_alike", float_prompts)
    monkeypatch.setattr(stacking, "GRAPH", 2**16)
    with torch.inference_mode():
        expected = answer()
        done = optimize_language(llm)
        for found, other in zip(answer(), expected, strict=True):
            torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-3)
        rough = llm(embeds.bfloat16())
    torch.testing.assert_close(rough.float(), expected[-1], rtol=0.1, atol=0.1)
    kernels = {each.name: each.choice.kernels for each in done}
    assert len(kernels) == 2 + 4 * LAYERS
    assert kernels["stack.graphs.1"]["decode"] == NBITS_FLOAT.name
    assert kernels["stack.prompts.blocks.2.mlp.down_proj"] == {"prefill": DENSE4.name}


@pytest.mark.parametrize("kind", [float_prompts, compiled_products])
def test_tokens_of_many_rows_are_read_like_prompts(
    llm: Qwen2, kind: Callable[..., Alike], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is compiled_products and (reason := NUMBA_INT8.missing()):
        pytest.skip(reason)
    monkeypatch.setattr(stacking, "measure_alike", kind)
    embeds = torch.randn(20, 1, 64)
    with torch.inference_mode():
        expected = llm(embeds)
        optimize_language(llm)
        stack = cast(GraphStack, llm.stack)
        for rows, buffers in ((20, 0), (16, 1)):
            cache = llm.cache(rows, 1)
            check(llm, [llm(embeds[:rows], cache=cache)], [expected[:rows]])
            assert len(stack.buffers_of) == buffers


def test_no_weight_lies_unpacked_beside_both_packings(llm: Qwen2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacking, "measure_alike", float_prompts)
    join_(llm)
    layers = [weakref.ref(layer) for layer in llm.modules() if isinstance(layer, Int4Linear)]
    optimize_language(llm)
    gc.collect()
    assert not any(layer() for layer in layers)


def test_compiled_prompts_may_look_ahead(llm: Qwen2, compiled: Turn) -> None:
    """A mask decides alone where blocks in torch look."""
    embeds = torch.randn(2, 9, 64)
    both_ways = torch.ones(2, 1, 5, 9, dtype=torch.bool)

    def read() -> list[Tensor]:
        cache = llm.cache(2, 9)
        first = llm(embeds[:, :4], cache=cache, wanted=torch.arange(4).expand(2, -1) == 3)
        return [first, llm(embeds[:, 4:], cache=cache, mask=both_ways)]

    with torch.inference_mode():
        expected = read()
        compiled()
        check(llm, read(), expected)


SHAPES = {
    "shared keys": {},
    "keys of their own": {"kv_heads": 4},
    "one key for all": {"kv_heads": 1},
    "other sizes": {"width": 96, "mlp_width": 200, "head_dim": 24, "rope_factor": 2.0, "rope_theta": 1e4, "eps": 1e-3},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_compiled_token_is_what_its_blocks_in_torch_make_of_it(
    shape: str, rows: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same products, and torch between them: only the order of sums differs, and a code that falls on an edge."""
    if reason := NUMBA_INT8.missing():
        pytest.skip(reason)
    from nvila_kernels.cpu.compiled.threads import Team

    torch.manual_seed(0)
    sizes = {"width": 64, "heads": 4, "kv_heads": 2, "mlp_width": 96, **SHAPES[shape]}
    llm = Qwen2(vocab_size=8, layers=2, **sizes).eval()
    quantize_(llm.layers, QuantPolicy((("*.down_proj", W4A16(group_size=64)), ("*", W4A16(group_size=32)))))
    monkeypatch.setattr(stacking, "measure_alike", compiled_products)
    monkeypatch.setattr("nvila_model.cpu.compiled_stack.team", lambda: Team(threads))
    optimize_language(llm)
    stack = cast("CompiledStack", llm.stack)
    embeds = torch.randn(rows, 9, sizes["width"])
    hidden = torch.rand(rows, 1, 1, 9) < 0.3
    hidden[..., 0] = hidden[..., -1] = False
    with torch.inference_mode():
        caches = [llm.cache(rows, 9) for _ in range(2)]
        for cache in caches:
            llm(embeds[:, :4], cache=cache)
        for step in range(4, 9):
            told = {"positions": torch.full((rows, 1), step + 7)} if step == 6 else {}
            if step >= 7:
                told["mask"] = ~hidden[..., : step + 1] if step == 8 else torch.ones(1, 1, 1, step + 1).bool()
            found = llm(embeds[:, step : step + 1], cache=caches[0], **told)
            given = {"positions": None, "mask": None, **told}
            expected = stack.prompts(embeds[:, step : step + 1], **given, cache=caches[1], wanted=None)
            caches[1].advance(1)
            assert float((found - expected).norm() / expected.norm()) < 2e-3
        for one, other in zip((caches[0].keys, caches[0].values), (caches[1].keys, caches[1].values), strict=True):
            assert float((one - other).norm() / other.norm()) < 2e-3


def test_gradients_are_left_alone(llm: Qwen2, stacks: Turn) -> None:
    """Outside of inference mode too a settled model answers, and nothing more."""
    stacks()
    cache = llm.cache(1, 4)
    embeds = torch.randn(1, 3, 64, requires_grad=True)
    prompt = llm(embeds, cache=cache)
    token = llm(embeds[:, :1], cache=cache)
    assert prompt.isfinite().all()
    assert token.isfinite().all()


def test_another_number_of_threads_may_go_on_with_an_answer(
    llm: Qwen2, compiled: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeds = torch.randn(1, 4, 64)
    compiled()

    def answer(*threads: int) -> list[Tensor]:
        cache = llm.cache(1, 4)
        found: list[Tensor] = []
        for token, count in enumerate(threads):
            monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
            found.append(llm(embeds[:, token, None], cache=cache))
        return found

    with torch.inference_mode():
        for one, other in zip(answer(1, 1, 1, 1), answer(1, 3, 2, 1), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of POSIX can be forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(llm: Qwen2, compiled: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's are not there; who waited for them would wait for ever."""
    compiled()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    embeds = torch.randn(1, 2, 64)
    with torch.inference_mode():
        cache = llm.cache(1, 2)
        llm(embeds[:, :1], cache=cache)
        child = os.fork()
        if child == 0:
            llm(embeds[:, 1:], cache=cache)
            os._exit(0)
        for _ in range(200):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            sleep(0.05)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert (done, status) == (child, 0)


def test_nothing_is_imported_for_compiling_before_something_is_compiled() -> None:
    """So that everything else works where numba is not installed, and begins without waiting for it where it is."""
    code = (
        "import sys, nvila_model.cpu.optimize, nvila_model.cli\nassert not {'numba', 'llvmlite'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_compiled_cache_can_go_back(llm: Qwen2, compiled: Turn) -> None:
    """To where another answer begins, and to its beginning."""
    embeds = torch.randn(2, 6, 64)
    compiled()
    with torch.inference_mode():
        cache = llm.cache(2, 8)
        expected = [llm(embeds[:, token, None], cache=cache) for token in range(6)]
        for length in (4, 0):
            cache.length = length
            for token in range(length, 6):
                torch.testing.assert_close(llm(embeds[:, token, None], cache=cache), expected[token], rtol=0, atol=0)
        with pytest.raises(ValueError, match="position 9 is beyond the cache of 8: make a longer cache"):
            llm(embeds[:, :3], cache=cache)
