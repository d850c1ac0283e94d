"""`driftsched keys`: API keys of tenants, made, listed and revoked while the gateway runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftsched.core.errors import ConfigError

if TYPE_CHECKING:
    from driftsched.config import Settings

keys_app = typer.Typer(
    no_args_is_help=True, help="Make, list and revoke API keys of tenants.", rich_markup_mode="markdown"
)

Config = Annotated[Path, typer.Option(help="The gateway's YAML file, which names `keys_file` and the tenants.")]
_DEFAULT = Path("driftsched.yaml")


@keys_app.command("create")
def keys_create(
    tenant: Annotated[str, typer.Argument(help="Id of a tenant in the configuration.")],
    config: Config = _DEFAULT,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="A gateway's key: it may say by headers for whom it calls.")
    ] = False,
) -> None:
    """Make a key and print it, this once: only its SHA-256 is kept, in the keys file.

    A running gateway knows it within a second.

    **Example**

        driftsched keys create search --config driftsched.yaml
    """
    from driftsched.keys import create_key

    settings, path = _settings_and_file(config)
    if tenant not in (known := [each.id for each in settings.tenants]):
        raise ConfigError(f"{config}: tenants: no {tenant!r} among {', '.join(known) or 'none'}: add it first")
    typer.echo(create_key(path, tenant, trusted=trusted))
    typer.echo(f"This key of {tenant} is not shown again. Its digest is in {path}.", err=True)


@keys_app.command("revoke")
def keys_revoke(
    digest: Annotated[str, typer.Argument(help="Its digest as `keys list` shows it, or the beginning of it.")],
    config: Config = _DEFAULT,
) -> None:
    """Revoke a key: a running gateway refuses it within a second."""
    from driftsched.keys import SHOWN_DIGITS, revoke_key

    _, path = _settings_and_file(config)
    revoked = revoke_key(path, digest)
    typer.echo(f"Revoked {revoked.sha256[:SHOWN_DIGITS]} of {revoked.tenant}.", err=True)


@keys_app.command("list")
def keys_list(config: Config = _DEFAULT) -> None:
    """List the keys of the keys file: the beginning of the digest, when it was made, its tenant."""
    from driftsched.keys import SHOWN_DIGITS, read_keys

    _, path = _settings_and_file(config)
    for key in read_keys(path):
        typer.echo(f"{key.sha256[:SHOWN_DIGITS]}  {key.created}  {key.tenant}{'  trusted' * key.trusted}")


def _settings_and_file(config: Path) -> "tuple[Settings, Path]":
    """The configuration without its keys, and where they are. Raises `ConfigError`."""
    from driftsched.config import read_settings

    settings = read_settings(config)
    path = settings.keys_path(config)
    if path is None:
        raise ConfigError(f"{config}: keys_file: add `keys_file: keys.yaml`, the file that keys are kept in")
    return settings, path
