"""Networks saved in a folder or on the Hugging Face hub: config.json and model.safetensors.

The metadata of model.safetensors have a SHA-256 of the weights, so that a flipped bit is detected.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from capsnet.checks import arguments_of, check_arguments, read_json
from capsnet.errors import InputError
from capsnet.files import usable_path

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class HubNetwork(nn.Module, PyTorchModelHubMixin, library_name="capsnet"):
    """A network with `from_pretrained`, `save_pretrained` and `push_to_hub`; config.json is checked by type hints."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """Load a network, on the CPU and in evaluation mode, from a folder or by its hub name "user/model".

        `model_kwargs` replace arguments of config.json; the options before them are the hub's. The hub is used only if
        the name cannot be a local path.

        Raises InputError if there is no such folder or hub name, if config.json or model.safetensors is damaged, and if
        the two do not match.
        """
        options = {"force_download": force_download, "token": token, "cache_dir": cache_dir, "revision": revision}
        options["local_files_only"] = local_files_only
        config_file, weights_file = _files(pretrained_model_name_or_path, options)
        config = read_json(config_file, arguments_of(cls.__init__)) | model_kwargs
        check_arguments(cls.__init__, config)
        weights = _weights(weights_file)
        try:
            with torch.device("meta"):  # a size that does not match the weights is found before it takes memory
                cls(**config).load_state_dict(weights, assign=True)
            network = cls(**config)
            network.load_state_dict(weights)
        except (InputError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{weights_file} does not hold the weights of its config.json: {reason}") from error
        return network.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: weight.contiguous() for name, weight in self.state_dict().items()}
        save_file(weights, save_directory / WEIGHTS, {"format": "pt", "sha256": _checksum(weights)})


def _files(name: str | Path, options: Mapping[str, Any]) -> list[Path]:
    """The files in a network's folder, or in the local copy of the hub's."""
    folder = usable_path(name)
    if folder.is_dir():
        return [folder / CONFIG, folder / WEIGHTS]
    if isinstance(name, Path) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) or folder.parent.exists():
        raise InputError(f"{name} is neither a network's folder nor a hub name like user/model")
    try:
        return [Path(hf_hub_download(name, file, **options)) for file in (CONFIG, WEIGHTS)]
    except Exception as error:  # of the connection, the hub or its local files: they have no common class
        reason = " ".join(str(error).split())
        raise InputError(f"{name} is not a folder, and cannot be loaded from the hub: {reason[:300]}") from error


def _weights(path: Path) -> dict[str, Tensor]:
    """The weights of a file; InputError if it cannot be read or has a checksum that does not match."""
    try:
        weights = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    checksum = metadata.pop("sha256", None)
    if metadata not in ({}, {"format": "pt"}) or checksum not in (None, _checksum(weights)):
        raise InputError(f"{path} is damaged: its checksum does not match")
    return weights


def _checksum(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the names, dtypes, shapes and numbers."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(repr((name, weight.dtype, tuple(weight.shape))).encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
