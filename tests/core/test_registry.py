"""Parts by name."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.registry import Registry


class Apple:
    """A fruit.

    More about it.
    """

    def __init__(self, weight: float = 1.0, *, label: str | None = None) -> None:
        if weight <= 0:
            raise ValueError(f"weight must be > 0, but is {weight}")
        self.weight = weight
        self.label = label


class Pear:
    def __init__(self, size: int) -> None:
        self.size = size


def fruits() -> Registry[object]:
    return Registry(
        "fruit", {"apple": f"{__name__}:Apple", "gone": "no.such.module:Gone"}, "driftsched.test_fruits"
    )


@contextmanager
def installed(folder: Path, distribution: str, entry_points: str, source: str) -> Iterator[None]:
    """A distribution with one module, importable while the context lasts."""
    module = distribution.replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[driftsched.test_fruits]\n{entry_points}\n")
    (folder / f"{module}.py").write_text(source)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(module, None)


def test_a_builtin_is_created_with_its_options() -> None:
    apple = fruits().create("apple", weight=2, label="gala")
    assert isinstance(apple, Apple)
    assert (2, "gala") == (apple.weight, apple.label)


def test_the_first_line_of_the_docstring_describes_a_name() -> None:
    assert "A fruit." == fruits().describe("apple")


def test_a_class_is_imported_only_when_it_is_asked_for() -> None:
    assert ["apple", "gone"] == fruits().names()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown fruit 'plum': use one of apple, gone"):
        fruits().create("plum")


def test_an_unknown_option_lists_the_accepted_ones() -> None:
    with pytest.raises(ConfigError, match="fruit 'apple' has no option 'colour': its options are weight, label"):
        fruits().create("apple", colour="red")


@pytest.mark.parametrize("weight", ["heavy", True, None, [1]])
def test_an_option_of_the_wrong_type_is_named(weight: object) -> None:
    with pytest.raises(ConfigError, match="option 'weight' of fruit 'apple' must be of type float"):
        fruits().create("apple", weight=weight)


def test_an_option_that_the_constructor_refuses_says_why() -> None:
    with pytest.raises(ConfigError, match="fruit 'apple' cannot be made: weight must be > 0, but is -1"):
        fruits().create("apple", weight=-1)


def test_a_missing_option_is_named() -> None:
    registry = fruits()
    registry.register("pear", Pear)
    with pytest.raises(ConfigError, match="fruit 'pear' needs the option 'size': its options are size"):
        registry.create("pear")


def test_a_registered_class_is_known_by_its_name() -> None:
    registry = fruits()
    registry.register("pear", Pear)
    assert ["apple", "gone", "pear"] == registry.names()
    assert isinstance(registry.create("pear", size=3), Pear)


@pytest.mark.parametrize("name", ["apple", "pear"])
def test_a_taken_name_cannot_be_registered(name: str) -> None:
    registry = fruits()
    registry.register("pear", Pear)
    with pytest.raises(ConfigError, match=f"fruit '{name}' exists already"):
        registry.register(name, Pear)


def test_an_installed_plugin_is_found_and_made(tmp_path: Path) -> None:
    source = "class Plum:\n    'A stone fruit.'\n    def __init__(self, ripe: bool = False): self.ripe = ripe\n"
    with installed(tmp_path, "plum-shop", "plum = plum_shop:Plum", source):
        assert ["apple", "gone", "plum"] == fruits().names()
        assert "A stone fruit." == fruits().describe("plum")
        assert vars(fruits().create("plum", ripe=True)) == {"ripe": True}


def test_a_plugin_cannot_override_a_builtin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with installed(tmp_path, "false-apple", "apple = false_apple:Apple", "class Apple: pass\n"):
        assert fruits().names() == ["apple", "gone"]
        assert isinstance(fruits().create("apple"), Apple)
    assert "ignoring fruit 'apple' of false-apple: built in" in caplog.text


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("raise RuntimeError('rotten')\n", "does not load: rotten"),
        ("", "does not load: .*'Plum'"),
        ("Plum = 1\n", "is bad_shop:Plum, which is no class"),
        ("class Plum:\n    def __init__(self): raise OSError('worm')\n", "cannot be made: worm"),
    ],
)
def test_a_broken_plugin_names_its_distribution_and_breaks_no_other(
    tmp_path: Path, source: str, complaint: str
) -> None:
    with installed(tmp_path, "bad-shop", "plum = bad_shop:Plum", source):
        with pytest.raises(ConfigError, match=f"fruit 'plum' of distribution bad-shop {complaint}"):
            fruits().create("plum")
        assert isinstance(fruits().create("apple"), Apple)


def test_a_name_offered_twice_is_nobodys(tmp_path: Path) -> None:
    source = "class Plum: pass\n"
    with (
        installed(tmp_path / "a", "shop-a", "plum = shop_a:Plum", source),
        installed(tmp_path / "b", "shop-b", "plum = shop_b:Plum", source),
        pytest.raises(ConfigError, match="fruit 'plum' is offered by shop-a and shop-b: uninstall all but one"),
    ):
        fruits().create("plum")
