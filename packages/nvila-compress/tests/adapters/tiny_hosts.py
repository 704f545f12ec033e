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


@dataclass
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
    options: dict[str, Any] = field(default_factory=dict)
    """For every call of the processor."""

    @property
    def token_id(self) -> int:
        return self.processor.tokenizer.convert_tokens_to_ids(self.placeholder)

    def inputs(self, counts: tuple[int, ...] = (1,), **options: Any) -> Any:
        """A prompt for each count, with so many pictures in it."""
        texts = [f"{' '.join([self.image] * n)} what is this {' '.join(['this'] * i)}" for i, n in enumerate(counts)]
        pictures = [[picture(seed) for seed in range(n)] for n in counts]
        return self.processor(
            images=pictures, text=texts, return_tensors="pt", padding=len(counts) > 1, **self.options | options
        )

    def video_inputs(self, frames: int = 4, videos: int = 1, **options: Any) -> Any:
        text = " ".join([self.video or ""] * videos) + " what is this"
        clips = [clip(frames, seed) for seed in range(videos)]
        return self.processor(videos=clips, text=[text], return_tensors="pt", **self.options | options)

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
        extra_special_tokens=named, padding_side="left",
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
    return Case(model.bfloat16(), processor, "<|patch|>", image="<|image|>")  # as its processor's pictures are


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
}


def make(name: str) -> Case:
    """A host with the same weights each time."""
    torch.manual_seed(0)
    case = HOSTS[name]()
    model: nn.Module = case.model
    model.eval()
    return case
