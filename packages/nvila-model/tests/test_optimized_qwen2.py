"""A language model whose tokens are compiled against the same one in torch."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from time import sleep

import pytest
import torch
from nvila_kernels import W4A16, Int4Linear, QuantPolicy, quantize_
from nvila_kernels.cpu import Kernel, OptimizedLayer, PackedLinear, ThreadTeam, thread_team
from nvila_kernels.cpu.kernels.numba_int4 import NUMBA_INT8
from nvila_model.cpu import is_optimized
from nvila_model.cpu.optimized_model import optimize_language, screened
from nvila_model.cpu.optimized_qwen2 import OptimizedQwen2
from nvila_model.network.cache import KVCache
from nvila_model.network.masks import causal_mask
from nvila_model.network.qwen2 import Qwen2
from torch import Tensor

LAYERS = 3
LIMIT = 0.1
"""Compiled products round activations to 8 bits, blocks of ``Int4Linear`` do not."""
needs_numba = pytest.mark.skipif(NUMBA_INT8.missing() is not None, reason=NUMBA_INT8.missing() or "")
pytestmark = needs_numba


@pytest.fixture
def llm() -> Qwen2:
    torch.manual_seed(0)
    made = Qwen2(vocab_size=32, width=64, layers=LAYERS, heads=4, kv_heads=2, mlp_width=96, tied=True).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    quantize_(made.layers, QuantPolicy((("*", W4A16(group_size=32)),)))
    return made


def optimized(llm: Qwen2) -> OptimizedQwen2:
    made, done = optimize_language(llm)
    assert isinstance(made, OptimizedQwen2)
    assert len(done) == 4 * len(made.layers)
    return made


def check(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=LIMIT, atol=LIMIT)


Model = Qwen2 | OptimizedQwen2


def talk(llm: Model) -> list[Tensor]:
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


def test_says_what_the_blocks_say(llm: Qwen2) -> None:
    with torch.inference_mode():
        expected = talk(llm)
        check(talk(optimized(llm)), expected)


def test_a_prompt_in_pieces_fills_the_same_cache(llm: Qwen2) -> None:
    embeds = torch.randn(2, 9, 64)

    def answer(model: Model) -> list[Tensor]:
        cache = model.cache(2, 10)
        assert isinstance(cache, KVCache)
        for part in (slice(0, 4), slice(4, 9)):
            last = model(embeds[:, part], cache=cache, wanted=torch.arange(9)[part].expand(2, -1) == part.stop - 1)
        return [last, cache.keys, cache.values]

    with torch.inference_mode():
        expected = answer(llm)
        check(answer(optimized(llm)), expected)


def decode(llm: Model, *, ahead: int = 0) -> list[Tensor]:
    """Five tokens for two rows after a prompt, by turns with one row of another cache; positions may be others."""
    embeds = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(2))
    rows, single = llm.cache(2, 8), llm.cache(1, 9)
    llm(embeds[:2, :3], cache=rows)
    llm(embeds[2:, :2], cache=single)
    found: list[Tensor] = []
    for step in range(5):
        positions = torch.tensor([[3 + step], [1 + step]]) + ahead if ahead else None
        found.append(llm(embeds[:2, 3 + step, None], cache=rows, positions=positions))
        found.append(llm(embeds[2:, 2 + step, None], cache=single))
    return found


@pytest.mark.parametrize("ahead", [0, 1, 50])
def test_tokens_are_decoded_where_the_last_ones_were(llm: Qwen2, ahead: int) -> None:
    """A position may lie after the end of the cache."""
    with torch.inference_mode():
        expected = decode(llm, ahead=ahead)
        check(decode(optimized(llm), ahead=ahead), expected)


def test_a_mask_counts_for_its_token_alone(llm: Qwen2) -> None:
    embeds = torch.randn(2, 5, 64)
    masks = [None, torch.tensor([[1, 1], [0, 1]]), torch.tensor([[1, 0, 1]]), None, None]

    def answer(model: Model) -> list[Tensor]:
        cache = model.cache(2, 5)
        return [
            model(embeds[:, token, None], cache=cache, mask=None if mask is None else mask[:, None, None].bool())
            for token, mask in enumerate(masks)
        ]

    with torch.inference_mode():
        expected = answer(llm)
        check(answer(optimized(llm)), expected)


def test_an_answer_may_go_on_in_another_mode(llm: Qwen2) -> None:
    embeds = torch.randn(1, 4, 64)

    def answer(model: Model) -> list[Tensor]:
        cache = model.cache(1, 4)
        found: list[Tensor] = []
        for token, mode in enumerate((torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad)):
            with mode():
                found.append(model(embeds[:, token, None], cache=cache))
        return found

    expected = answer(llm)
    check(answer(optimized(llm)), expected)


def test_buffers_last_as_long_as_their_cache(llm: Qwen2) -> None:
    model = optimized(llm)
    cache = model.cache(1, 2)
    with torch.inference_mode():
        model(torch.zeros(1, 1, 64), cache=cache)
        again = deepcopy(model)(torch.ones(1, 1, 64), cache=cache)
        cache.length = 1
        assert torch.equal(model(torch.ones(1, 1, 64), cache=cache), again)
        assert len(model.buffers_of) == 1
        with pytest.raises(ValueError, match="position 3 is beyond the cache of 2"):
            model(torch.zeros(1, 1, 64), cache=cache)
    del cache
    gc.collect()
    assert not model.buffers_of


@pytest.mark.parametrize(
    ("embeds", "given", "message"),
    [
        ((2, 1, 64), {}, "2 rows for a cache of 3: make one for as many rows"),
        ((3, 1, 32), {}, "embeddings have 32 channels, the model 64: embed with its own"),
        ((3, 1, 65), {}, "embeddings have 65 channels, the model 64: embed with its own"),
        ((3, 1, 64), {"mask": torch.ones(3, 1, 1, 9).bool()}, r"mask are \[3, 1, 1, 9\], .* needs \[3, 1, 1, 1\]"),
        ((3, 1, 64), {"mask": torch.ones(2, 1, 1, 1).bool()}, r"mask are \[2, 1, 1, 1\], .* needs \[3, 1, 1, 1\]"),
        ((3, 1, 64), {"positions": torch.zeros(2, 1).long()}, r"positions are \[2, 1\], .* needs \[3, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_edge(
    llm: Qwen2, embeds: tuple[int, ...], given: dict[str, Tensor], message: str
) -> None:
    """A compiled token writes where it is told to, so nothing of another shape may come that far."""
    model = optimized(llm)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(embeds), cache=model.cache(3, 4), **given)


@pytest.mark.parametrize("other", [{"layers": 2}, {"heads": 1}, {"head_dim": 8}, {"dtype": torch.bfloat16}])
def test_the_cache_of_another_model_is_refused(llm: Qwen2, other: dict[str, object]) -> None:
    model = optimized(llm)
    own = {"layers": LAYERS, "heads": 2, "head_dim": 16, "dtype": torch.float32, **other}
    cache = KVCache(batch=1, length=4, device=torch.device("cpu"), **own)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"the cache is not one of float32 \[3, 1, 2, 4, 16\]: make it by this"):
        model(torch.zeros(1, 1, 64), cache=cache)


def test_a_head_that_is_screened_stays(llm: Qwen2) -> None:
    llm.lm_head = screened(llm.embed_tokens.weight)  # pyright: ignore[reportAttributeAccessIssue]
    assert optimized(llm).lm_head is llm.lm_head


def test_threads_may_read_prompts_at_once(llm: Qwen2) -> None:
    prompts = torch.randn(8, 1, 5, 64)
    model = optimized(llm)
    with torch.inference_mode():
        expected = [model(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(torch.inference_mode()(model), [*prompts, *prompts, *prompts]))
    for index, states in enumerate(found):
        assert torch.equal(states, expected[index % 8])


def test_threads_may_answer_at_once(llm: Qwen2) -> None:
    embeds = torch.randn(4, 1, 6, 64)
    model = optimized(llm)

    @torch.inference_mode()
    def answer(number: int) -> Tensor:
        cache = model.cache(1, 6)
        return torch.cat([model(embeds[number, :, token, None], cache=cache) for token in range(6)])

    expected = [answer(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, [0, 1, 2, 3] * 4))
    for index, states in enumerate(found):
        assert torch.equal(states, expected[index % 4])


def test_lower_precision_outside_stays_outside(llm: Qwen2) -> None:
    x = torch.randn(1, 5, 64)
    model = optimized(llm)
    with torch.inference_mode():
        expected = model(x)
        model.norm.bfloat16()
        found = model(x.bfloat16(), cache=model.cache(1, 5))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=LIMIT, atol=LIMIT)


def test_products_stay_outside_of_what_torch_compiles(llm: Qwen2) -> None:
    x = torch.randn(1, 5, 64)
    torch.compiler.reset()
    model = optimized(llm)
    with torch.inference_mode():
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(compiled(x[:, :1], cache=model.cache(1, 2)), model(x[:, :1]), rtol=0.01, atol=0.01)


REFUSED: dict[str, tuple[Callable[[OptimizedQwen2], object], str]] = {
    "train": (lambda model: model.train(), "only answers and cannot be trained"),
    "save": (lambda model: model.state_dict(), r"layers\.0\.self_attn\.qkv_proj is packed .* and cannot be saved"),
    "pickle": (pickle.dumps, "packed for this machine cannot be pickled"),
    "move": (lambda model: model.to("meta"), "runs on the CPU and cannot be moved to meta"),
    "cast": (lambda model: model.to(torch.bfloat16), "computes in float32 and cannot be cast to torch.bfloat16"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_only_answers(llm: Qwen2, what: str) -> None:
    model = optimized(llm)
    act, message = REFUSED[what]
    with pytest.raises(ValueError, match=f"{message}.*optimize=False"):
        act(model)


def test_what_changes_nothing_works(llm: Qwen2) -> None:
    assert not is_optimized(llm)
    model = optimized(llm)
    assert is_optimized(model)
    assert model.eval().to("cpu", torch.float32).float().cpu() is model
    assert not model.training
    x = torch.randn(1, 3, 64)
    with torch.inference_mode():
        assert torch.equal(deepcopy(model)(x), model(x))


def test_each_layer_has_its_own_kernel_where_nothing_can_be_compiled(
    llm: Qwen2, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        expected = talk(llm)
        monkeypatch.setattr("nvila_kernels.cpu.packed_linear.NUMBA_INT8", absent := replace_missing())
        made, done = optimize_language(llm)
        assert made is llm
        assert absent.missing() == "no compiler"
        assert is_optimized(llm)
        assert len(done) == 4 * LAYERS  # they are joined all the same
        assert {each.name for each in done} >= {"layers.0.self_attn.qkv_proj", "layers.2.mlp.down_proj"}
        check(talk(llm), expected)
    assert isinstance(done[0], OptimizedLayer)


def replace_missing() -> Kernel:
    return replace(NUMBA_INT8, missing=lambda: "no compiler")


def test_activations_that_may_not_be_rounded_have_kernels_of_their_own(llm: Qwen2) -> None:
    with torch.inference_mode():
        expected = talk(llm)
        made, done = optimize_language(llm, int8_activations=False)
        assert made is llm
        assert not any("int8" in each.choice.kernel for each in done)
        for found, other in zip(talk(llm), expected, strict=True):
            torch.testing.assert_close(found, other, rtol=0.03, atol=0.03)


def test_memory_that_is_not_enough_is_named(llm: Qwen2) -> None:
    with pytest.raises(ValueError, match=r"packed weights take \d+ bytes, more than the 1000 that max_memory leaves"):
        optimize_language(llm, max_memory=1000)


def test_nothing_is_kept_of_the_layers(llm: Qwen2) -> None:
    layers = [weakref.ref(layer) for layer in llm.modules() if isinstance(layer, Int4Linear)]
    model = optimized(llm)
    gc.collect()
    assert not any(layer() for layer in layers)
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 4 * LAYERS


def test_tokens_of_many_rows_are_read_like_prompts(llm: Qwen2) -> None:
    embeds = torch.randn(20, 1, 64)
    with torch.inference_mode():
        expected = llm(embeds)
        model = optimized(llm)
        for rows, buffers in ((20, 0), (16, 1)):
            cache = model.cache(rows, 1)
            check([model(embeds[:rows], cache=cache)], [expected[:rows]])
            assert len(model.buffers_of) == buffers


def test_prompts_may_look_ahead(llm: Qwen2) -> None:
    """A mask decides alone where a prompt looks."""
    embeds = torch.randn(2, 9, 64)
    both_ways = torch.ones(2, 1, 5, 9, dtype=torch.bool)

    def answer(model: Model) -> list[Tensor]:
        cache = model.cache(2, 9)
        first = model(embeds[:, :4], cache=cache, wanted=torch.arange(4).expand(2, -1) == 3)
        return [first, model(embeds[:, 4:], cache=cache, mask=both_ways)]

    with torch.inference_mode():
        expected = answer(llm)
        check(answer(optimized(llm)), expected)


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
    torch.manual_seed(0)
    sizes = {"width": 64, "heads": 4, "kv_heads": 2, "mlp_width": 96, **SHAPES[shape]}
    llm = Qwen2(vocab_size=8, layers=2, **sizes).eval()
    quantize_(llm.layers, QuantPolicy((("*.down_proj", W4A16(group_size=64)), ("*", W4A16(group_size=32)))))
    team = ThreadTeam(threads)
    monkeypatch.setattr("nvila_kernels.cpu.compiled.threads.thread_team", lambda: team)
    model = optimized(llm)
    embeds = torch.randn(rows, 9, sizes["width"])
    masked = torch.rand(rows, 1, 1, 9) < 0.3
    masked[..., 0] = masked[..., -1] = False
    with torch.inference_mode():
        caches = [model.cache(rows, 9) for _ in range(2)]
        for cache in caches:
            model(embeds[:, :4], cache=cache)
        for step in range(4, 9):
            given = {"positions": torch.full((rows, 1), step + 7)} if step == 6 else {}
            if step >= 7:
                given["mask"] = ~masked[..., : step + 1] if step == 8 else torch.ones(1, 1, 1, step + 1).bool()
            found = model(embeds[:, step : step + 1], cache=caches[0], **given)
            all_given = {"positions": None, "mask": None, **given}
            expected = model.read(embeds[:, step : step + 1], **all_given, cache=caches[1], wanted=None)
            caches[1].advance(1)
            assert float((found - expected).norm() / expected.norm()) < 2e-3
        for one, other in zip((caches[0].keys, caches[0].values), (caches[1].keys, caches[1].values), strict=True):
            assert float((one - other).norm() / other.norm()) < 2e-3


def test_gradients_are_left_alone(llm: Qwen2) -> None:
    """Outside of inference mode too it answers, and nothing more."""
    model = optimized(llm)
    cache = model.cache(1, 4)
    embeds = torch.randn(1, 3, 64, requires_grad=True)
    prompt = model(embeds, cache=cache)
    token = model(embeds[:, :1], cache=cache)
    assert prompt.isfinite().all()
    assert token.isfinite().all()


def test_another_number_of_threads_may_go_on_with_an_answer(llm: Qwen2, monkeypatch: pytest.MonkeyPatch) -> None:
    embeds = torch.randn(1, 4, 64)
    model = optimized(llm)

    def answer(*threads: int) -> list[Tensor]:
        cache = model.cache(1, 4)
        found: list[Tensor] = []
        for token, count in enumerate(threads):
            monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
            found.append(model(embeds[:, token, None], cache=cache))
        return found

    with torch.inference_mode():
        for one, other in zip(answer(1, 1, 1, 1), answer(1, 3, 2, 1), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of POSIX can be forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(llm: Qwen2, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's are not there; who waited for them would wait for ever."""
    model = optimized(llm)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    embeds = torch.randn(1, 2, 64)
    with torch.inference_mode():
        cache = model.cache(1, 2)
        model(embeds[:, :1], cache=cache)
        child = os.fork()
        if child == 0:
            model(embeds[:, 1:], cache=cache)
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
    code = "import sys, nvila_model.cpu, nvila_model.cli\nassert not {'numba', 'llvmlite'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cache_can_go_back(llm: Qwen2) -> None:
    """To where another answer begins, and to its beginning."""
    embeds = torch.randn(2, 6, 64)
    model = optimized(llm)
    with torch.inference_mode():
        cache = model.cache(2, 8)
        expected = [model(embeds[:, token, None], cache=cache) for token in range(6)]
        for length in (4, 0):
            cache.length = length
            for token in range(length, 6):
                torch.testing.assert_close(model(embeds[:, token, None], cache=cache), expected[token], rtol=0, atol=0)
        with pytest.raises(ValueError, match="position 9 is beyond the cache of 8: make a longer cache"):
            model(embeds[:, :3], cache=cache)


@pytest.fixture
def interrupting() -> Iterator[Callable[[float], None]]:
    """Interrupts this process once after so many seconds, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers of POSIX")
def test_an_interrupted_answer_leaves_no_thread_waiting(
    llm: Qwen2, interrupting: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever Ctrl-C comes, the next token is decoded, and it is the same."""
    model = optimized(llm)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    embeds = torch.randn(1, 1, 64)

    def decode_for_ever(delay: float) -> None:
        interrupting(delay)
        while True:
            model(embeds, cache=model.cache(1, 1))

    delays = torch.rand(60, generator=torch.Generator().manual_seed(0)) * 0.003 + 0.0005
    with torch.inference_mode():
        expected = model(embeds, cache=model.cache(1, 1))
        for delay in delays.tolist():
            with pytest.raises(KeyboardInterrupt):
                decode_for_ever(delay)
            assert torch.equal(model(embeds, cache=model.cache(1, 1)), expected)
    assert thread_team().threads == 2
