"""`python -m training.migrate BUNDLE`: writes a bundle of the last schema once more, as it is now.

Schema 2 kept the graphs as they were exported. Nothing is trained or measured again, and the old
version stays as it is.
"""

import json
import logging
import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.bundle.store import (
    MANIFEST_FILE,
    REPORT_FOLDER,
    Bundle,
    Manifest,
    new_version,
    open_bundle,
)
from model.cli_and_env_settings import CommandSettings, load_or_exit
from model.errors import BundleError
from model.inference.predictor_loading import load_predictor
from training.command_exit_status import names_missing_extra, run_command

logger = logging.getLogger("training.migrate")

_MIGRATED_SCHEMA = 2
_NOT_KEPT = {"schema_version", "version", "published", "files"}


class MigrationConfig(CommandSettings):
    """Write a bundle of an earlier version of Dropserve as the next version of its model."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_MIGRATION_", cli_prog_name="python -m training.migrate"
    )

    bundle: CliPositionalArg[Path] = Field(description="folder of one version, models/NAME/VERSION")


@names_missing_extra
def main(arguments: list[str] | None = None) -> int:
    """Migrate one bundle; return the exit status."""
    config = load_or_exit(MigrationConfig, arguments)
    return run_command(lambda: migrate(config.bundle), "Interrupted; no bundle was written.")


def migrate(folder: Path) -> Path:
    """Write the bundle in `folder`, models/NAME/VERSION, as the next version; return its folder.

    Raises:
        BundleError: it is of another schema or damaged, or the new one cannot be written.
    """
    from training.export.finished_graphs import finish_graphs  # which imports onnx

    old = _open(folder.resolve())
    models, name = old.path.parent.parent, old.manifest.name
    with new_version(models, name) as draft:
        for file in old.manifest.files:
            target = draft.path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(old.take(file))
        finish_graphs(draft.path)
        draft.manifest = old.manifest.model_dump(exclude=_NOT_KEPT)
        draft.write_versioned = lambda version: _write_report(draft.path, old, version)
    path = models / name / str(draft.version)
    load_predictor(open_bundle(path))
    logger.info("The bundle: %s", path)
    return path


def _open(folder: Path) -> Bundle:
    file = folder / MANIFEST_FILE
    try:
        found = json.loads(file.read_bytes())
        schema = found.pop("schema_version")
        manifest = Manifest.model_validate(found)
    except (OSError, ValueError, AttributeError, KeyError):
        raise BundleError(
            f"{file} is not the manifest of a bundle; name models/NAME/VERSION."
        ) from None
    if schema != _MIGRATED_SCHEMA:
        raise BundleError(f"{folder} is of schema {schema}; only {_MIGRATED_SCHEMA} is migrated.")
    return Bundle(folder, manifest, card="")


def _write_report(folder: Path, old: Bundle, version: int) -> None:
    """Write the pages of the report, whose titles name the version."""
    name, before = old.manifest.name, old.manifest.version
    for file in old.manifest.files:
        if file.startswith(REPORT_FOLDER) and file.endswith((".md", ".html")):
            page = old.take(file).decode()
            titled = page.replace(f"{name}, version {before}", f"{name}, version {version}")
            (folder / file).write_text(titled, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
