"""A quarter of SmolVLM's image tokens by spatial-to-channel folding: attach, ask, save, load again.

The answer after attaching is that of a projector that reads the mean of each 2 x 2 neighbourhood; some training of
that layer makes use of what the mean throws away.

uv run python examples/smolvlm_stc.py HuggingFaceTB/SmolVLM-256M-Instruct photo.jpg
"""

import sys
import tempfile

import torch
from nvila_compress.adapters import attach, load_compressed
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

name, picture = sys.argv[1:3]
model = AutoModelForImageTextToText.from_pretrained(name)
processor = AutoProcessor.from_pretrained(name)
image, prompt = Image.open(picture), "<image> What is this?"


def ask() -> tuple[int, str]:
    """The image tokens of the prompt, and the answer."""
    inputs = processor(images=[[image]], text=[prompt], return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    count = int((inputs["input_ids"] == model.config.image_token_id).sum())
    return count, processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


print("alone:", *ask())
attached = attach(model, processor, "stc-2x2")
print(f"{attached.tokens_before} -> {attached.tokens_after} tokens a tile:", *ask())
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model, processor = load_compressed(folder)
    print("saved and loaded:", *ask())
