"""`python -m training.migrate_bundle BUNDLE`: writes a bundle of schema 2 as a new version.

Schema 2 kept the graphs as they were exported; they are finished. Trains and measures nothing.
"""

import json
import logging
import os
import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.bundle.bounded_reading import read_file
from model.bundle.store import (
    HEAD_FILE,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MODEL_FILE,
    Bundle,
    Manifest,
    new_version,
    open_bundle,
)
from model.cli_and_env_settings import CommandSettings, load_or_exit
from model.errors import BundleError
from model.inference.predictor_loading import load_predictor
from training.command_setup import names_missing_extra, run_logged_command

logger = logging.getLogger("training.migrate_bundle")


class MigrationConfig(CommandSettings):
    """Write a bundle of an earlier version of Dropserve as the next version of its model."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_MIGRATION_", cli_prog_name="python -m training.migrate_bundle"
    )

    bundle: CliPositionalArg[Path] = Field(description="folder of one version, models/NAME/VERSION")


@names_missing_extra
def main(arguments: list[str] | None = None) -> int:
    """Migrate one bundle; return the exit status."""
    config = load_or_exit(MigrationConfig, arguments)
    return run_logged_command(lambda: migrate(config.bundle), "Interrupted; no bundle was written.")


def migrate(folder: Path) -> Path:
    """Write the bundle in `folder`, models/NAME/VERSION, as the next version; return its folder.

    Raises:
        BundleError: it is of another schema or damaged, or the new one cannot be written.
    """
    old = _open(Path(os.path.abspath(folder)))  # noqa: PTH100 - a link stays the place of a version
    name, models = old.manifest.name, old.path.parent.parent
    with new_version(models, name) as draft:

        def write_titles(version: int) -> None:
            title = f"{name}, version {old.manifest.version}".encode()
            for page in (*draft.path.glob("report/*.md"), *draft.path.glob("report/*.html")):
                content = old.take(page.relative_to(draft.path).as_posix())
                page.write_bytes(content.replace(title, f"{name}, version {version}".encode()))

        def verify(finished: Path) -> None:
            try:
                load_predictor(open_bundle(finished, served_name=name))
            except BundleError as error:
                raise BundleError(str(error).replace(str(finished), str(old.path))) from None

        for file in old.manifest.files:
            (draft.path / file).parent.mkdir(parents=True, exist_ok=True)
            (draft.path / file).write_bytes(old.take(file))
        _finish(draft.path, old)
        again = {"schema_version", "version", "published", "files"}
        draft.manifest = old.manifest.model_dump(exclude=again)
        draft.write_versioned, draft.verify = write_titles, verify
    path = models / name / str(draft.version)
    logger.info("The bundle: %s", path)
    return path


def _open(folder: Path) -> Bundle:
    """Open a bundle of schema 2; what is wrong with its files shows when they are taken."""
    try:
        found = json.loads(read_file(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES))
        found["schema_version"] += 1
        manifest = Manifest.model_validate(found)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise BundleError(f"{folder} is no bundle of schema 2; name models/NAME/VERSION.") from None
    place = f"{manifest.name}/{manifest.version}"
    if folder.parts[-2:] != (manifest.name, str(manifest.version)):
        raise BundleError(f"{folder} holds {place}; put it into a folder of that name.")
    for file in (MODEL_FILE, HEAD_FILE):
        if file not in manifest.files:
            raise BundleError(f"{folder} lists no {file}; export it again.")
    return Bundle(folder, manifest, card="")


def _finish(draft: Path, old: Bundle) -> None:
    """Finish the graphs, which may be anything whose digest the manifest has."""
    from training.export.serving_graphs import finish_graphs  # which imports onnx

    try:
        finish_graphs(draft)
    except OSError:  # the disk is full
        raise
    except Exception:  # onnx has no common type for what it refuses
        raise BundleError(
            f"The graphs of {old.path} are not those of a bundle of schema 2; export it again."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
