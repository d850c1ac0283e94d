"""Parts by name: the built-in ones, those of installed plug-ins and those an embedding program registers."""

import importlib
import inspect
import logging
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import UnionType
from typing import Generic, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from driftsched.core.errors import ConfigError

_logger = logging.getLogger(__name__)

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one kind by name. A class is imported when it is first asked for.

    A third party adds one by an entry point in `entry_point_group` that names a class; the constructor's keyword
    arguments are its options. A built-in name is never overridden, and a plug-in that does not load fails only
    whoever asks for it.
    """

    def __init__(self, kind: str, builtins: Mapping[str, str], entry_point_group: str) -> None:
        """`kind` is the noun of error messages; `builtins` maps each name to its `module:Class`."""
        self._kind = kind
        self._builtins = dict(builtins)
        self._group = entry_point_group
        self._registered: dict[str, type[T]] = {}

    def names(self) -> list[str]:
        """Every known name, sorted."""
        return sorted({*self._builtins, *self._registered, *(plugin.name for plugin in self._plugins())})

    def create(self, name: str, **options: object) -> T:
        """A new object of the class called `name`.

        Raises `ConfigError` for an unknown name (listing the names), an option the class does not have, lacks or
        refuses (listing the options), and a plug-in that does not load (naming its distribution).
        """
        made = self._load(name)
        where = f"{self._kind} {name!r}"
        _check_options(where, made, options)
        try:
            return made(**options)
        except ConfigError:
            raise
        except Exception as error:  # whatever a constructor raises, its option or its surroundings are wrong
            raise ConfigError(f"{where}{self._origin(name)} cannot be made: {error}") from error

    def describe(self, name: str) -> str:
        """First line of the docstring of the class called `name`. Raises `ConfigError` as `create` does."""
        return (inspect.getdoc(self._load(name)) or "").partition("\n")[0]

    def register(self, name: str, made: type[T]) -> None:
        """Let `name` stand for the class `made`. Raises `ConfigError` if the name is taken."""
        if name in self.names():
            raise ConfigError(f"{self._kind} {name!r} exists already: register yours under another name")
        self._registered[name] = made

    def _plugins(self) -> list[EntryPoint]:
        """Installed plug-ins. One that claims a built-in name is listed, and never loaded."""
        found = list(entry_points(group=self._group))
        for plugin in found:
            if plugin.name in self._builtins:
                _logger.warning("ignoring %s %r of %s: built in", self._kind, plugin.name, _distribution(plugin))
        return found

    def _load(self, name: str) -> type[T]:
        if name in self._builtins:
            module, _, attribute = self._builtins[name].partition(":")
            return cast(type[T], getattr(importlib.import_module(module), attribute))
        if name in self._registered:
            return self._registered[name]
        candidates = [plugin for plugin in self._plugins() if plugin.name == name]
        if not candidates:
            raise ConfigError(f"unknown {self._kind} {name!r}: use one of {', '.join(self.names())}")
        if len(candidates) > 1:
            owners = " and ".join(sorted(_distribution(plugin) for plugin in candidates))
            raise ConfigError(f"{self._kind} {name!r} is offered by {owners}: uninstall all but one")
        return self._load_plugin(candidates[0])

    def _load_plugin(self, plugin: EntryPoint) -> type[T]:
        owner = f"{self._kind} {plugin.name!r} of distribution {_distribution(plugin)}"
        try:
            made = plugin.load()
        except Exception as error:  # somebody else's module: importing it may fail in any way
            raise ConfigError(f"{owner} does not load: {error}. Repair or uninstall it") from error
        if not isinstance(made, type):
            raise ConfigError(f"{owner} is {plugin.value}, which is no class: its entry point must name one")
        return made

    def _origin(self, name: str) -> str:
        """` of distribution NAME` for a plug-in, nothing for a class of our own."""
        if name in self._builtins or name in self._registered:
            return ""
        return "".join(
            f" of distribution {_distribution(plugin)}" for plugin in self._plugins() if plugin.name == name
        )


def _distribution(plugin: EntryPoint) -> str:
    return plugin.dist.name if plugin.dist else "an unknown distribution"


def _check_options(where: str, made: type, options: Mapping[str, object]) -> None:
    parameters = inspect.signature(made).parameters
    accepted = ", ".join(parameters) or "none"
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = _type_hints(made)
    for option, value in options.items():
        if option not in parameters and not takes_any:
            raise ConfigError(f"{where} has no option {option!r}: its options are {accepted}")
        if option in hints and not _fits(value, hints[option]):
            wanted = getattr(hints[option], "__name__", str(hints[option]))
            raise ConfigError(f"option {option!r} of {where} must be of type {wanted}, but is {value!r}")
    for option, parameter in parameters.items():
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and parameter.default is parameter.empty and option not in options:
            raise ConfigError(f"{where} needs the option {option!r}: its options are {accepted}")


def _type_hints(made: type) -> dict[str, object]:
    try:
        return get_type_hints(made.__init__)  # type: ignore[misc]  # of the very class, never of a subclass
    except NameError:  # a plug-in may annotate with names that only its type checker imports
        return {}


def _fits(value: object, hint: object) -> bool:
    """Whether a plain value is of the annotated type; a whole number fits `float`, a bool fits no number."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    wanted = get_origin(hint) or hint
    if not isinstance(wanted, type):
        return True  # Any, Literal and the like: left to the constructor
    if wanted in (int, float) and isinstance(value, bool):
        return False
    try:
        return isinstance(value, (int, float) if wanted is float else wanted)
    except TypeError:  # a protocol or a typed dict cannot be checked so
        return True
