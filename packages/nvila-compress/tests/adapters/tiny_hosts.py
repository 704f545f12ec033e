"""Tiny random hosts: the real classes of transformers, with processors and tokenizers made here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

WIDTH = 32
"""Of the language models."""


@dataclass(repr=False)
class Case:
    """A host, and how to ask it."""

    model: Any
    processor: Any
    placeholder: str
    """What the tests count, as it stands in the expanded prompt."""
    image: str = "<image>"
    video: str | None = None
    tile: int | None = 36
    """Tokens of one tile, where all are alike."""
    folded: dict[int, int] = field(default_factory=dict)
    """Tokens of a picture before and after 2 x 2 folding, worked out by hand, where they are not a quarter."""
    options: dict[str, Any] = field(default_factory=dict)
    """For every call of the processor."""

    @property
    def token_id(self) -> int:
        return self.processor.tokenizer.convert_tokens_to_ids(self.placeholder)

    def inputs(self, counts: tuple[int, ...] = (1,), **options: Any) -> Any:
        """A prompt for each count, with so many pictures in it."""
        texts = [f"{' '.join([self.image] * n)} what is this {' '.join(['this'] * i)}" for i, n in enumerate(counts)]
        pictures = [[picture(seed) for seed in range(n)] for n in counts]
        options = {"return_tensors": "pt", "padding": len(counts) > 1} | self.options | options
        return self.processor(images=pictures, text=texts, **options).to(self.model.dtype)

    def video_inputs(self, frames: int = 4, videos: int = 1, **options: Any) -> Any:
        text = " ".join([self.video or ""] * videos) + " what is this"
        clips = [clip(frames, seed) for seed in range(videos)]
        return self.processor(videos=clips, text=[text], return_tensors="pt", **self.options | options).to(
            self.model.dtype
        )

    def count(self, inputs: Any) -> list[int]:
        """Placeholders in each prompt."""
        return (inputs["input_ids"] == self.token_id).sum(dim=1).tolist()


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


def clip(frames: int = 4, seed: int = 0) -> np.ndarray:
    return np.stack([np.asarray(picture(10 * seed + i, (48, 48))) for i in range(frames)])


def tokenizer(special: list[str], **named: str) -> Any:
    words = ["<unk>", "<pad>", "<bos>", "</s>", "what", "is", "this", *special]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", bos_token="<bos>", eos_token="</s>",
        extra_special_tokens=named, padding_side="left", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    fast.add_special_tokens({"additional_special_tokens": special})
    return fast


def text_config(kind: Any, vocabulary: int, **more: Any) -> Any:
    return kind(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
        pad_token_id=1, bos_token_id=2, eos_token_id=3, **more,
    )  # fmt: skip


def vision(size: int, patch: int, layers: int = 2) -> dict[str, int]:
    return {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2,
        "image_size": size, "patch_size": patch,
    }  # fmt: skip


def llava(strategy: str = "default") -> Case:
    words = tokenizer(["<image>"])
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision(36, 6)),
            text_config=text_config(transformers.LlamaConfig, len(words)),
            image_token_index=words.convert_tokens_to_ids("<image>"),
            vision_feature_select_strategy=strategy,
        )
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 36, "width": 36})
    processor = transformers.LlavaProcessor(
        images, words, patch_size=6, vision_feature_select_strategy=strategy, num_additional_image_tokens=1
    )
    return Case(model, processor, "<image>")


def vipllava() -> Case:
    case = llava()
    model = transformers.VipLlavaForConditionalGeneration(
        transformers.VipLlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision(36, 6)),
            text_config=case.model.config.text_config,
            image_token_index=case.token_id,
            vision_feature_layer=[-2, 0],
        )
    )
    return Case(model, case.processor, "<image>")


def video_llava() -> Case:
    words = tokenizer(["<image>", "<video>"])
    model = transformers.VideoLlavaForConditionalGeneration(
        transformers.VideoLlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision(36, 6)),
            text_config=text_config(transformers.LlamaConfig, len(words)),
            image_token_index=words.convert_tokens_to_ids("<image>"),
            video_token_index=words.convert_tokens_to_ids("<video>"),
        )
    )
    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 36, "width": 36}}
    processor = transformers.VideoLlavaProcessor(
        transformers.VideoLlavaImageProcessor(**size), transformers.VideoLlavaVideoProcessor(**size), words,
        patch_size=6, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return Case(model, processor, "<image>", video="<video>")


def paligemma() -> Case:
    words = tokenizer(["<image>"])
    images = transformers.SiglipImageProcessor(size={"height": 36, "width": 36})
    images.image_seq_length = 36
    model = transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            vision_config={**vision(36, 6), "model_type": "siglip_vision_model", "projection_dim": WIDTH},
            text_config=text_config(transformers.GemmaConfig, len(words)),
            image_token_index=words.convert_tokens_to_ids("<image>"),
            projection_dim=WIDTH,
        )
    )
    return Case(model, transformers.PaliGemmaProcessor(images, words), "<image>")


def idefics2() -> Case:
    words = tokenizer(["<image>", "<fake_token_around_image>", "<end_of_utterance>"])
    images = transformers.Idefics2ImageProcessor(
        size={"shortest_edge": 24, "longest_edge": 48}, do_image_splitting=False
    )
    processor = transformers.Idefics2Processor(images, words, image_seq_len=16)
    model = transformers.Idefics2ForConditionalGeneration(
        transformers.Idefics2Config(
            vision_config=vision(48, 6),
            text_config=text_config(transformers.MistralConfig, len(words), sliding_window=None),
            perceiver_config={
                "hidden_size": WIDTH, "resampler_n_latents": 16, "resampler_depth": 1, "resampler_n_heads": 2,
                "resampler_head_dim": 8, "num_key_value_heads": 1,
            },
            image_token_id=words.convert_tokens_to_ids("<image>"),
        )
    )  # fmt: skip
    nn.init.normal_(model.model.connector.perceiver_resampler.latents)  # all alike otherwise
    return Case(model, processor, "<image>", tile=16)


def idefics3(kind: str = "Idefics3") -> Case:
    cells = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    words = tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *cells, "<video>"])
    sizes = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}
    images = getattr(transformers, f"{kind}ImageProcessor")(**sizes, resample=Image.Resampling.BICUBIC)
    parts = [images, words]
    if kind == "SmolVLM":
        sampling = {"max_frames": 64, "fps": 1, "video_size": {"longest_edge": 48}}
        parts.append(
            transformers.SmolVLMVideoProcessor(
                size={"longest_edge": 48}, max_image_size={"longest_edge": 48}, video_sampling=sampling,
                resample=Image.Resampling.BICUBIC,
            )
        )  # fmt: skip
    processor = getattr(transformers, f"{kind}Processor")(*parts, image_seq_len=36)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision(48, 4),
        text_config=text_config(transformers.LlamaConfig, len(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return Case(model, processor, "<image>", video="<video>" if kind == "SmolVLM" else None)


def smolvlm() -> Case:
    return idefics3("SmolVLM")


def internvl() -> Case:
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<ctx>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer(list(named.values()), **named)
    images = transformers.GotOcr2ImageProcessor(
        size={"height": 48, "width": 48}, crop_to_patches=True, min_patches=2, max_patches=4
    )
    videos = transformers.InternVLVideoProcessor(size={"height": 48, "width": 48})
    processor = transformers.InternVLProcessor(images, words, videos, image_seq_length=36)
    model = transformers.InternVLForConditionalGeneration(
        transformers.InternVLConfig(
            vision_config={**vision(48, 4)},
            text_config=text_config(transformers.LlamaConfig, len(words)),
            image_token_id=words.convert_tokens_to_ids("<ctx>"),
            downsample_ratio=0.5,
        )
    )
    return Case(model, processor, "<ctx>", image="<ctx>", video="<video>")


def aya_vision() -> Case:
    special = [
        "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL",
        *(f"TILE_{i}" for i in range(1, 13)),
    ]  # fmt: skip
    words = tokenizer(special)
    images = transformers.GotOcr2ImageProcessor(
        size={"height": 48, "width": 48}, crop_to_patches=True, min_patches=2, max_patches=4
    )
    processor = transformers.AyaVisionProcessor(images, words, patch_size=4, img_size=48, downsample_factor=2)
    model = transformers.AyaVisionForConditionalGeneration(
        transformers.AyaVisionConfig(
            vision_config={**vision(48, 4), "model_type": "siglip_vision_model"},
            text_config=text_config(transformers.Cohere2Config, len(words), sliding_window=512),
            image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
            alignment_intermediate_size=24,
        )
    )
    return Case(model, processor, "<|IMG_PATCH|>")


def llama4() -> Case:
    special = [
        "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>"
    ]  # fmt: skip
    words = tokenizer(special)
    images = transformers.Llama4ImageProcessor(size={"height": 48, "width": 48}, max_patches=4)
    processor = transformers.Llama4Processor(images, words, patch_size=4, pixel_shuffle_ratio=0.5)
    tower = {
        **vision(48, 4), "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
        "intermediate_size": 64,
    }  # fmt: skip
    text = text_config(
        transformers.Llama4TextConfig,
        len(words),
        intermediate_size_mlp=64,
        num_local_experts=2,
        attention_chunk_size=64,
    )
    model = transformers.Llama4ForConditionalGeneration(
        transformers.Llama4Config(
            vision_config=tower, text_config=text, image_token_index=words.convert_tokens_to_ids("<|patch|>")
        )
    )
    return Case(model, processor, "<|patch|>", image="<|image|>")


def gemma3() -> Case:
    named = {"image_token": "<soft>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    words = tokenizer(list(named.values()), **named)
    images = transformers.Gemma3ImageProcessor(size={"height": 48, "width": 48})
    processor = transformers.Gemma3Processor(images, words, image_seq_length=36)
    model = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            vision_config={**vision(48, 4), "model_type": "siglip_vision_model"},
            text_config=text_config(transformers.Gemma3TextConfig, len(words), sliding_window=128),
            mm_tokens_per_image=36,
            image_token_index=words.convert_tokens_to_ids("<soft>"),
            boi_token_index=words.convert_tokens_to_ids("<boi>"),
            eoi_token_index=words.convert_tokens_to_ids("<eoi>"),
        )
    )
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)  # 0 otherwise
    return Case(model, processor, "<soft>", image="<boi>")


MAP = {36 + 10 * (12 + 1): 9 + 5 * (6 + 1)}
"""A base tile, and a map whose padding is cut off: 64 x 48 pixels in 72 x 72."""
PINPOINTS = [[36, 72], [72, 36], [72, 72]]


def llava_next(kind: str = "LlavaNext") -> Case:
    words = tokenizer(["<image>", "<video>"])
    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 36, "width": 36}}
    tokens = {"image_token_index": words.convert_tokens_to_ids("<image>")}
    images = transformers.LlavaNextImageProcessor(**size, image_grid_pinpoints=PINPOINTS)
    options = {"patch_size": 6, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if kind == "LlavaNextVideo":
        tokens["video_token_index"] = words.convert_tokens_to_ids("<video>")
        videos = transformers.LlavaNextVideoVideoProcessor(**size)
        processor = transformers.LlavaNextVideoProcessor(videos, images, words, **options)
    else:
        processor = transformers.LlavaNextProcessor(images, words, **options)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=transformers.CLIPVisionConfig(**vision(36, 6)),
        text_config=text_config(transformers.LlamaConfig, len(words)),
        image_grid_pinpoints=PINPOINTS,
        **tokens,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return Case(
        model, processor, "<image>", video="<video>" if kind == "LlavaNextVideo" else None, tile=None, folded=MAP
    )


def llava_next_video() -> Case:
    return llava_next("LlavaNextVideo")


def llava_onevision() -> Case:
    words = tokenizer(["<image>", "<video>"])
    size = {"size": {"height": 36, "width": 36}}
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(**size, image_grid_pinpoints=PINPOINTS), words,
        transformers.LlavaOnevisionVideoProcessor(**size), num_image_tokens=36, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )  # fmt: skip
    model = transformers.LlavaOnevisionForConditionalGeneration(
        transformers.LlavaOnevisionConfig(
            vision_config={**vision(36, 6), "model_type": "siglip_vision_model", "vision_use_head": False},
            text_config=text_config(transformers.Qwen2Config, len(words)),
            image_grid_pinpoints=PINPOINTS,
            image_token_index=words.convert_tokens_to_ids("<image>"),
            video_token_index=words.convert_tokens_to_ids("<video>"),
            vision_aspect_ratio="anyres_max_2",
        )
    )
    folded = {36 + 7 * (9 + 1): 9 + 4 * (5 + 1), 37: 10}  # the map shrunk to two tiles; several pictures: base alone
    return Case(model, processor, "<image>", video="<video>", tile=None, folded=folded)


def llava_pixtral(kind: str = "Llava", merge: int = 1) -> Case:
    words = tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    images = transformers.PixtralImageProcessor(size={"longest_edge": 48}, patch_size=4)
    processor = transformers.PixtralProcessor(images, words, patch_size=4, spatial_merge_size=merge)
    tower = transformers.PixtralVisionConfig(**{**vision(48, 4), "head_dim": 8})
    options = {"spatial_merge_size": merge} if merge > 1 else {"vision_feature_select_strategy": "full"}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=tower,
        text_config=text_config(transformers.MistralConfig, len(words), sliding_window=None),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        **options,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    folded = {9 * 12: 5 * 6, 5 * 6: 3 * 3}
    return Case(model, processor, "[IMG]", image="[IMG]", tile=None, folded=folded)


def mistral3() -> Case:
    return llava_pixtral("Mistral3", 2)


def qwen2_vl(kind: str = "Qwen2") -> Case:
    words = tokenizer(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
    family, patch = ("Qwen3", 16) if kind == "Qwen3" else ("Qwen2", 14)
    size = {"shortest_edge": patch * patch * 80, "longest_edge": patch * patch * 144}
    images = transformers.Qwen2VLImageProcessor(size=size, patch_size=patch)
    videos = getattr(transformers, f"{family}VLVideoProcessor")(
        size={"shortest_edge": patch * patch * 128, "longest_edge": patch * patch * 4096}, patch_size=patch,
        do_sample_frames=False,
    )  # fmt: skip
    name = {"Qwen2": "Qwen2VL", "Qwen2_5": "Qwen2_5_VL", "Qwen3": "Qwen3VL"}[kind]
    processor = getattr(transformers, f"{name}Processor")(images, words, videos)
    tower = {"depth": 2, "num_heads": 2, "patch_size": patch}
    tower |= {
        "Qwen2": {"embed_dim": 16, "hidden_size": WIDTH},
        "Qwen2_5": {
            "hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 32, "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        "Qwen3": {
            "hidden_size": 16, "out_hidden_size": WIDTH, "intermediate_size": 32, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    }[kind]  # fmt: skip
    text_kind = getattr(transformers.models, {"Qwen2": "qwen2_vl", "Qwen2_5": "qwen2_5_vl", "Qwen3": "qwen3_vl"}[kind])
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = text_config(getattr(text_kind, f"{name}TextConfig"), len(words), rope_parameters=rope)
    config = getattr(transformers, f"{name}Config")(
        vision_config=tower,
        text_config=text.to_dict(),
        **{f"{token}_token_id": words.convert_tokens_to_ids(f"<|{text}|>") for token, text in QWEN_TOKENS.items()},
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    wrap = "<|vision_start|> {} <|vision_end|>".format
    return Case(
        model, processor, "<|image_pad|>", image=wrap("<|image_pad|>"), video=wrap("<|video_pad|>"), tile=None,
        folded={4 * 5: 2 * 3, 4 * 6: 2 * 3},
    )  # fmt: skip


QWEN_TOKENS = {
    "image": "image_pad",
    "video": "video_pad",
    "vision_start": "vision_start",
    "vision_end": "vision_end",
}


def qwen2_5_vl() -> Case:
    return qwen2_vl("Qwen2_5")


def qwen3_vl() -> Case:
    return qwen2_vl("Qwen3")


HOSTS: dict[str, Callable[[], Case]] = {
    "llava": llava,
    "vipllava": vipllava,
    "video_llava": video_llava,
    "paligemma": paligemma,
    "idefics2": idefics2,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
    "aya_vision": aya_vision,
    "llama4": llama4,
    "gemma3": gemma3,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "llava_next_video": llava_next_video,
    "llava_pixtral": llava_pixtral,
    "mistral3": mistral3,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
}


def make(name: str) -> Case:
    """A host with the same weights each time."""
    torch.manual_seed(0)
    case = HOSTS[name]()
    model: nn.Module = case.model
    model.eval()
    return case
