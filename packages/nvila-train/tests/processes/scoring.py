"""A process of ``nvila-train score`` under torchrun; run by ``test_shards`` with its number and arguments."""

import os

import torch
from nvila_train.cli.app import app

if __name__ == "__main__":
    settings: dict = globals()["SETTINGS"]
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(settings["rank"]), "WORLD_SIZE": str(settings["world"])}
    app(settings["arguments"], standalone_mode=False)
