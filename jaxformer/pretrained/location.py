"""Find the model that a path names: in a local folder or file, or in Hugging Face's hub."""

import os
import re
from pathlib import Path

from jaxformer.pretrained.formats import is_gguf
from jaxformer.pretrained.formats.folder import FORMS
from jaxformer.pretrained.hub import CONFIGS, Part, fetch

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(path: str | os.PathLike[str], part: Part) -> Path:
    """Return the file that describes a model: model.json, config.json or a GGUF file.

    Args:
        path: a local file or folder; if nothing of this name exists, an id in Hugging Face's hub.
        part: what is fetched from the hub.

    Raises:
        FileNotFoundError: the path does not exist, or its folder holds no model or several.
        ValueError: a file that does not describe a model.
    """
    place = Path(path)
    if not place.exists():
        if not HUB_ID.fullmatch(str(path)) or place.suffix == ".gguf":
            raise FileNotFoundError(f"{path} does not exist; give a model's folder or a GGUF file")
        place = fetch(str(path), part)
    return _in_folder(place) if not place.is_file() else _check_file(place)


def _check_file(file: Path) -> Path:
    if file.name not in CONFIGS and file.suffix != ".gguf" and not is_gguf(file):
        raise ValueError(
            f"{file} is not a GGUF file and does not describe a model; give its folder, {file.parent}"
        )
    return file


def _in_folder(folder: Path) -> Path:
    """Choose among the files of a folder: model.json, then config.json, then the only GGUF file.

    A config.json beside a GGUF file does not count unless the folder has weights of its own.
    """
    files = sorted(folder.glob("*.gguf"))
    gguf_only = len(files) == 1 and not any((folder / name).is_file() for name in FORMS)
    for name in CONFIGS:
        if (folder / name).is_file() and not (gguf_only and name == "config.json"):
            return folder / name
    if len(files) == 1:
        return files[0]
    raise FileNotFoundError(
        f"{folder} holds no model: there is no model.json (jaxformer) and no config.json (Hugging Face)"
        + (f"; choose one of its {len(files)} GGUF files" if files else ", and no GGUF file")
    )
