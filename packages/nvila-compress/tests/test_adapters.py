"""Compressors in tiny random models from transformers, from picture to generated tokens."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from nvila_compress import PerceiverResampler, SpatialToChannel, TemporalAverage, TokenLearner
from nvila_compress.adapters import CompressedLinear, attach, supported_models, widen
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

transformers = pytest.importorskip("transformers")

WIDTH = 32
# transformers' own PaliGemma processor hands a tensor to numpy the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@dataclass
class Case:
    model: nn.Module
    processor: object
    prompt: str
    width: int
    """What the first linear layer reads."""


def tokenizer(special: list[str], **named: str) -> object:
    words = ["<unk>", "<pad>", "<bos>", "</s>", "what", "is", "this", *special]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", bos_token="<bos>", eos_token="</s>",
        extra_special_tokens=named,
    )  # fmt: skip
    fast.add_special_tokens({"additional_special_tokens": special})
    return fast


def text_config(kind: type, vocabulary: int) -> object:
    return kind(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        pad_token_id=1, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip


def vision(size: int, patch: int) -> dict[str, int]:
    return {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": size, "patch_size": patch,
    }  # fmt: skip


def llava() -> Case:
    words = tokenizer(["<image>"])
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision(30, 6)),
            text_config=text_config(transformers.LlamaConfig, len(words)),
            image_token_id=words.convert_tokens_to_ids("<image>"),
        )
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    processor = transformers.LlavaProcessor(
        images, words, patch_size=6, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return Case(model, processor, "<image> what is this", 16)


def paligemma() -> Case:
    words = tokenizer(["<image>"])
    images = transformers.SiglipImageProcessor(size={"height": 30, "width": 30})
    images.image_seq_length = 25
    processor = transformers.PaliGemmaProcessor(images, words)
    model = transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            vision_config={**vision(30, 6), "model_type": "siglip_vision_model", "projection_dim": WIDTH},
            text_config=text_config(transformers.GemmaConfig, len(words)),
            image_token_id=words.convert_tokens_to_ids("<image>"),
            projection_dim=WIDTH,
        )
    )
    return Case(model, processor, "<image> what is this", 16)


def idefics3() -> Case:
    words = tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"])
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 80}, max_image_size={"longest_edge": 40}, resample=Image.Resampling.BICUBIC
    )
    processor = transformers.Idefics3Processor(images, words, image_seq_len=25)
    model = transformers.Idefics3ForConditionalGeneration(
        transformers.Idefics3Config(
            vision_config=vision(40, 4),
            text_config=text_config(transformers.LlamaConfig, len(words)),
            image_token_id=words.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )
    )
    return Case(model, processor, "<image> what is this", 64)


def internvl() -> Case:
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<ctx>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer(list(named.values()), **named)
    images = transformers.GotOcr2ImageProcessor(size={"height": 40, "width": 40}, max_patches=4)
    videos = transformers.InternVLVideoProcessor()
    processor = transformers.InternVLProcessor(images, words, videos, image_seq_length=25)
    model = transformers.InternVLForConditionalGeneration(
        transformers.InternVLConfig(
            vision_config={**vision(40, 4)},
            text_config=text_config(transformers.LlamaConfig, len(words)),
            image_token_id=words.convert_tokens_to_ids("<ctx>"),
            downsample_ratio=0.5,
        )
    )
    return Case(model, processor, "<ctx> what is this", 64)


FAMILIES: dict[str, Callable[[], Case]] = {
    "llava": llava,
    "paligemma": paligemma,
    "idefics3": idefics3,
    "internvl": internvl,
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def fresh(family: str) -> Case:
    torch.manual_seed(0)
    case = FAMILIES[family]()
    case.model.eval()
    return case


@pytest.fixture
def case(fresh: Case) -> Case:
    """A copy, since attaching changes model and processor."""
    return copy.deepcopy(fresh)


def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 48)).convert("RGB")


def generate(case: Case) -> tuple[int, torch.Tensor]:
    """Tokens that stand for the picture, and what is generated after it."""
    inputs = case.processor(images=[picture()], text=[case.prompt], return_tensors="pt")
    with torch.no_grad():
        out = case.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, eos_token_id=3)
    image_id = case.model.config.image_token_id
    return int((inputs["input_ids"] == image_id).sum()), out[:, inputs["input_ids"].shape[1] :]


def test_uncompressed_models_run(case: Case) -> None:
    tokens, answer = generate(case)
    assert tokens % 25 == 0
    assert answer.shape == (1, 4)


def spatial(case: Case) -> SpatialToChannel:
    return SpatialToChannel(2)


def learned(case: Case) -> TokenLearner:
    return TokenLearner(channels=case.width, tokens=4)


def resampler(case: Case) -> PerceiverResampler:
    return PerceiverResampler(channels=case.width, tokens=6, depth=1).eval()


@pytest.mark.parametrize(("make", "tokens"), [(spatial, 9), (learned, 4), (resampler, 6)])
def test_generate_with_a_compressor(case: Case, make: Callable[[Case], nn.Module], tokens: int) -> None:
    before, _ = generate(case)
    attached = attach(case.model, case.processor, make(case))
    assert (attached.tokens_before, attached.tokens_after) == (25, tokens)
    assert isinstance(case.model.get_submodule(attached.layer), CompressedLinear)
    after, answer = generate(case)
    assert after == before // 25 * tokens
    assert answer.shape == (1, 4)


def test_batches_and_counts_follow(case: Case, family: str) -> None:
    attach(case.model, case.processor, SpatialToChannel(2))
    case.processor.tokenizer.padding_side = "left"
    prompts = [case.prompt, f"{case.prompt} this this"]
    inputs = case.processor(images=[[picture()], [picture()]] if family == "idefics3" else [picture()] * 2,
                            text=prompts, return_tensors="pt", padding=True)  # fmt: skip
    case.model.generate(**inputs, max_new_tokens=2)
    tokens = (inputs["input_ids"] == case.model.config.image_token_id).sum(dim=1)
    assert (tokens % 9 == 0).all()
    if family in ("llava", "paligemma"):
        assert case.processor._get_num_multimodal_tokens([(30, 30)])["num_image_tokens"] == [9]


def test_gradients_reach_the_compressor(case: Case) -> None:
    attached = attach(case.model, case.processor, learned(case))
    inputs = case.processor(images=[picture()], text=[case.prompt], return_tensors="pt")
    inputs.pop("labels", None)
    case.model(**inputs, labels=inputs["input_ids"]).loss.backward()
    layer = case.model.get_submodule(attached.layer)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_state_dict_returns(case: Case, fresh: Case) -> None:
    attach(case.model, case.processor, learned(case))
    again = copy.deepcopy(fresh)
    attach(again.model, again.processor, learned(again))
    again.model.load_state_dict(case.model.state_dict())
    expected, found = generate(case), generate(again)
    assert expected[0] == found[0]
    assert torch.equal(expected[1], found[1])


def test_processor_keeps_the_count_when_saved(case: Case, family: str, tmp_path: object) -> None:
    attach(case.model, case.processor, SpatialToChannel(2))
    case.processor.save_pretrained(tmp_path)
    again = type(case.processor).from_pretrained(tmp_path)
    inputs = again(images=[picture()], text=[case.prompt], return_tensors="pt")
    assert int((inputs["input_ids"] == case.model.config.image_token_id).sum()) % 9 == 0


def test_starts_as_the_mean_of_the_folded_tokens() -> None:
    linear = nn.Linear(6, 4)
    folded = CompressedLinear(SpatialToChannel(2), linear)
    tokens = torch.randn(3, 16, 6)
    mean = tokens.view(3, 2, 2, 2, 2, 6).mean(dim=(2, 4)).view(3, 4, 6)
    torch.testing.assert_close(folded(tokens), linear(mean))


def test_same_tokens_same_answer() -> None:
    """Where all folded tokens are equal, nothing is lost at the start."""
    linear = nn.Linear(6, 4).to(torch.bfloat16)
    folded = CompressedLinear(SpatialToChannel(3), linear)
    token = torch.randn(1, 1, 6, dtype=torch.bfloat16)
    out = folded(token.expand(1, 36, 6))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, linear(token).expand(1, 4, 4), atol=2e-2, rtol=2e-2)


def test_widened_layer_keeps_what_the_old_one_had() -> None:
    linear = nn.Linear(6, 4, bias=False).requires_grad_(False)
    wide = widen(linear, 24)
    assert wide.bias is None
    assert not wide.weight.requires_grad
    with pytest.raises(ValueError, match="25 input features are no multiple of 6"):
        widen(linear, 25)


def test_refusals(case: Case) -> None:
    with pytest.raises(ValueError, match="would mix different images"):
        attach(case.model, case.processor, TemporalAverage(4))
    with pytest.raises(ValueError, match=f"tokens {case.width} wide, but built for 7"):
        attach(case.model, case.processor, TokenLearner(channels=7, tokens=4))
    assert generate(case)[0] % 25 == 0, "a refused compressor leaves the model as it was"
    attached = attach(case.model, case.processor, SpatialToChannel(2))
    with pytest.raises(ValueError, match="has a compressor already"):
        attach(case.model, case.processor, SpatialToChannel(2))
    parent, _, child = attached.layer.rpartition(".")
    setattr(case.model.get_submodule(parent), child, nn.Identity())
    with pytest.raises(ValueError, match="is a Identity"):
        attach(case.model, case.processor, SpatialToChannel(2))


def test_unknown_models_are_refused() -> None:
    with pytest.raises(ValueError, match="no adapter for 'Linear' models"):
        attach(nn.Linear(2, 2), None, SpatialToChannel(2))
    assert {*FAMILIES, "smolvlm"} == set(supported_models())


def test_llava_with_images_of_varying_size_is_refused() -> None:
    case = llava()
    case.processor.image_processor.do_center_crop = False
    with pytest.raises(ValueError, match="varies"):
        attach(case.model, case.processor, SpatialToChannel(2))


def test_a_part_of_a_model_is_refused() -> None:
    part = nn.Module()
    part.config = transformers.LlavaConfig()
    with pytest.raises(ValueError, match=r"has no layer multi_modal_projector\.linear_1"):
        attach(part, None, SpatialToChannel(2))


def test_smolvlm_has_the_layer() -> None:
    """SmolVLM is Idefics3's twin; its processor needs a package that is not a dependency here."""
    model = transformers.SmolVLMForConditionalGeneration(
        transformers.SmolVLMConfig(
            vision_config=vision(40, 4), text_config=text_config(transformers.LlamaConfig, 64), scale_factor=2
        )
    )

    class Processor:
        image_seq_len = 25
        image_processor = None

    processor = Processor()
    attach(model, processor, SpatialToChannel(2))
    assert processor.image_seq_len == 9
    features = model.get_image_features(torch.randn(1, 1, 3, 40, 40), return_dict=True).pooler_output
    assert features[0].shape == (9, WIDTH)
