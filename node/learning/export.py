"""Reading a trained model back, on a machine with no state directory."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from node.errors import ConfigError


def load_model(path: Path | str) -> dict[str, Tensor]:
    """The named tensors of a node's model.safetensors, ready for ``load_state_dict``.

    Raises ConfigError where the file is missing, cut short, or no model of a node.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(Path(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: not a model of a node: {error}") from None
    if "vector" not in tensors:
        raise ConfigError(f"{path}: not a model of a node: it has no tensor 'vector'")
    return {name: tensor for name, tensor in tensors.items() if name != "vector"}
