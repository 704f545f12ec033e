"""LLaVA-OneVision on a video at a quarter of its tokens, without training, by several methods.

uv run python examples/onevision_video.py llava-hf/llava-onevision-qwen2-0.5b-ov-hf examples/motion.mp4
"""

import sys

import av
import numpy as np
import torch
from nvila_compress.adapters import attach, detach
from transformers import AutoModelForImageTextToText, AutoProcessor

name, path = sys.argv[1:3]
model = AutoModelForImageTextToText.from_pretrained(name)
processor = AutoProcessor.from_pretrained(name)
with av.open(path) as file:
    frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
video = np.stack([frames[i] for i in np.linspace(0, len(frames) - 1, 8).round().astype(int)])

for method in (None, "uniform-25%", "evs-25%", "vidcom2-25%", "temporal-4"):
    if method:
        attach(model, processor, method)
    inputs = processor(videos=[video], text=["<video> What happens?"], return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    tokens = int((inputs["input_ids"] == model.config.video_token_id).sum())
    answer = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{method or 'alone':12} {tokens:5} tokens: {answer}")
    if method:
        detach(model, processor)
