"""Where a checkpoint is: shipped with the package, in a folder, or on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from nvila_model.checkpoint.tensor_folder import CheckpointError
from nvila_model.presets import list_models, repository

NANO = Path(__file__).parent.parent / "nano"
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
"""What is fetched from a repository; pickled weights are not."""


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> Path:
    """The folder of a checkpoint, fetched from the hub if need be.

    Args:
        name: ``"nano"``, a folder, or a repository such as ``Efficient-Large-Model/NVILA-Lite-2B``.
        revision: branch, tag or commit of the repository.
        offline: use only what was fetched before.
        cache_dir: where fetched files are kept; by default the hub's own folder.
        token: for repositories that need one; by default the one that is logged in.

    Raises: CheckpointError if there is no such folder, repository or revision, or it cannot be reached.
    """
    if not is_remote(name):
        return NANO if name == "nano" else Path(name)
    if name and Path(name).exists():
        raise CheckpointError(f"{name} is a file: give the folder that holds config.json")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        known = f"; its weights are {repository(str(name))}" if name in list_models() else ""
        raise CheckpointError(f"no model {str(name)!r}: give 'nano', a folder, or a hub repository 'owner/name'{known}")
    return fetch(str(name), revision=revision, offline=offline, cache_dir=cache_dir, token=token)


def is_remote(name: str | Path) -> bool:
    """Whether a checkpoint is neither the one that is shipped nor a folder."""
    return name != "nano" and not (name and Path(name).is_dir())


def fetch(name: str, *, revision: str | None, offline: bool, cache_dir: str | Path | None, token: str | None) -> Path:
    """The folder of a repository in the hub library's cache. Its library is imported here: local models need none.

    Raises: CheckpointError if there is no such repository or revision, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = snapshot_download(
            name,
            revision=revision,
            local_files_only=offline,
            cache_dir=cache_dir,
            token=token,
            allow_patterns=FILES,
        )
    except GatedRepoError:
        raise CheckpointError(f"{name} asks for access: accept its terms on the hub and pass a token") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{name} has no revision {revision!r}: give a branch, a tag or a commit") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"{name} is neither a folder nor a repository that can be seen: check the name") from None
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is not a repository name: {error}") from None
    except LocalEntryNotFoundError:
        reason = "it was not fetched before" if offline else "the hub cannot be reached"
        raise CheckpointError(f"{name} is not on this machine and {reason}: go online once, or give a folder") from None
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{name} could not be fetched from the hub: {error}") from None
    return Path(found)
