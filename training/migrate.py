"""`python -m training.migrate BUNDLE`: writes a bundle of schema 2 as a new version of its model.

Schema 2 kept the graphs as they were exported; they are finished. Trains and measures nothing.
"""

import json
import logging
import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.bundle.store import MANIFEST_FILE, Bundle, Manifest, new_version, open_bundle
from model.cli_and_env_settings import CommandSettings, load_or_exit
from model.errors import BundleError
from model.inference.predictor_loading import load_predictor
from training.command_exit_status import names_missing_extra, run_command

logger = logging.getLogger("training.migrate")


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
    name, models = old.manifest.name, old.path.parent.parent
    with new_version(models, name) as draft:

        def write_titles(version: int) -> None:
            for page in (*draft.path.glob("report/*.md"), *draft.path.glob("report/*.html")):
                text = old.take(page.relative_to(draft.path).as_posix()).decode()
                title = f"{name}, version {old.manifest.version}"
                page.write_text(text.replace(title, f"{name}, version {version}"), "utf-8")

        for file in old.manifest.files:
            (draft.path / file).parent.mkdir(parents=True, exist_ok=True)
            (draft.path / file).write_bytes(old.take(file))
        finish_graphs(draft.path)
        again = {"schema_version", "version", "published", "files"}
        draft.manifest, draft.write_versioned = old.manifest.model_dump(exclude=again), write_titles
    path = models / name / str(draft.version)
    load_predictor(open_bundle(path))
    logger.info("The bundle: %s", path)
    return path


def _open(folder: Path) -> Bundle:
    try:
        found = json.loads((folder / MANIFEST_FILE).read_bytes())
        found["schema_version"] += 1
        return Bundle(folder, Manifest.model_validate(found), card="")
    except (OSError, ValueError, TypeError, KeyError):
        raise BundleError(f"{folder} is no bundle of schema 2; name models/NAME/VERSION.") from None


if __name__ == "__main__":
    sys.exit(main())
