"""YAML files, read safely: plain data, and no object of anybody's making."""

from pathlib import Path

import yaml

from driftsched.core.errors import ConfigError

try:
    from yaml import CSafeLoader as _Loader  # a tenth of the time: a gateway reads its files while it serves
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]


def read_yaml(path: Path) -> object:
    """What a file holds, None if that is nothing. Raises `ConfigError` naming the file."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
