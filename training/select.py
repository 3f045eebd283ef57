"""`python -m training.select --model BUNDLE --pool folder:PATH`: which images to label next.

Writes a list of images without labels, most worth first. It changes neither the pool nor the
bundle; `python -m training --add` trains with what was labelled.
"""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from model.atomic_file_writing import write_new
from model.bundle.store import Bundle, open_bundle
from model.cli_and_env_settings import load_or_exit
from model.errors import RunError, SettingsError
from training.command_setup import names_missing_extra, run_logged_command
from training.selection.selection_config import WITHOUT_SAMPLES, SelectionConfig

# Not `__name__`, which is `__main__` on the command line: `training` is what is logged.
logger = logging.getLogger("training.select")


@names_missing_extra
def main(arguments: list[str] | None = None) -> int:
    """Choose images; return the exit status."""
    config = load_or_exit(SelectionConfig, arguments)
    return run_logged_command(lambda: select(config), "Interrupted; no list was written.")


def select(config: SelectionConfig) -> Path:
    """Choose images as `config` describes, write the list, and return its path.

    Raises:
        DropserveError: with one sentence that says what to do.
    """
    # imported here, as they import matplotlib and SciPy, which takes seconds
    from training.evaluate import dataset_config
    from training.selection.choose_images import choose_images, shortlist_size
    from training.selection.pool import open_pool
    from training.selection.pool_scores import PoolPredictor
    from training.selection.selection_list import encode_list, list_chosen

    bundle = open_bundle(config.model)
    require_dropout(config, bundle)
    class_names = bundle.manifest.class_names
    shortlist = shortlist_size(config, len(class_names))
    limits = {"max_image_megapixels": config.max_image_megapixels}
    data = dataset_config(bundle, config.pool, config).model_copy(update=limits)
    pool = open_pool(data, bundle.manifest.input)
    logger.info("Scoring %s images of %s.", f"{len(pool.names):,}", config.pool)
    predictor = PoolPredictor(config, pool)
    scores, images = predictor.score()
    chosen = choose_images(config, scores, images, shortlist, predictor.sample)
    listed = list_chosen(chosen, pool.names, class_names)
    files = {config.output: encode_list(listed, config.output.suffix)}
    if config.contact_sheet is not None:
        from training.selection.contact_sheet import IMAGE_SIZE, render_contact_sheet

        rows = chosen.scores.rows.tolist()
        title = f"{config.model.parent.name} {config.model.name}: {config.method}"
        page = render_contact_sheet(title, listed, lambda place: pool.show(rows[place], IMAGE_SIZE))
        files[config.contact_sheet] = page.encode()
    _write(files)  # once all of it is there
    logger.info(
        "Chosen: %s of %s images, in %s.",
        *(f"{len(listed):,}", f"{len(scores):,}", config.output),
    )
    return config.output


def require_dropout(config: SelectionConfig, bundle: Bundle) -> None:
    """Raise SettingsError if all samples of an image are equal, and a method compares them."""
    has_dropout = any(layer.p > 0 for layer in bundle.manifest.dropout_layers)
    if config.method not in WITHOUT_SAMPLES and not has_dropout:
        raise SettingsError(
            f"{config.model} has no dropout, so all samples of an image are equal and tell no "
            f"image from another; use --method {' or '.join(WITHOUT_SAMPLES)}."
        )


def _write(files: Mapping[Path, bytes]) -> None:
    """Write new files, or none of them."""
    written: list[Path] = []
    for file, content in files.items():
        try:
            write_new(file, content)
        except OSError as error:
            for each in written:
                each.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                sentence = f"{file} exists by now, and somebody may work with it; name another."
            else:
                sentence = (
                    f"{file} cannot be written ({error.strerror}); name a file in a folder that "
                    "exists and has room."
                )
            raise RunError(sentence) from None
        written.append(file)


if __name__ == "__main__":
    sys.exit(main())
