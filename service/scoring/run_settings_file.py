"""The settings of a run in a file beside its output, so that two settings never mix in one output.

`results.csv` has `results.csv.settings.json`. Settings that change no line are not in it.
"""

from pathlib import Path
from typing import Any

import orjson

from service.scoring.output_file import (
    OutputError,
    require_file,
    unwritable,
    write_atomically,
)
from service.scoring.score_settings import ScoreSettings
from service.scoring.scoring_process_messages import ModelFacts

_SUFFIX = ".settings.json"
_FIELDS = (
    "method",
    "design",
    "coverage",
    "sets",
    "max_risk",
    "max_false_alarm",
    "probabilities",
    "max_image_pixels",
    "max_file_bytes",
    "decode_timeout_seconds",
)
"""The settings by which lines differ."""


def settings_file(output: Path) -> Path:
    """Return the path of the settings of an output."""
    return output.with_name(output.name + _SUFFIX)


def begin_or_continue(settings: ScoreSettings, model: ModelFacts, working: Path) -> None:
    """Write the settings of a new output, or compare them with those of the one that exists.

    working: the file to which lines are appended, the output itself or one beside it.

    Raises:
        OutputError: the output was written with other settings, or by something else, or is no
            file.
    """
    require_file(settings.output)
    require_file(working)
    file = settings_file(settings.output)
    now = _described(settings, model)
    if not any(path.exists() and path.stat().st_size for path in (settings.output, working)):
        content = orjson.dumps(now, option=orjson.OPT_INDENT_2)
        write_atomically(file, [content], settings.output)
        return
    before = _read(file, settings.output)
    for name, value in now.items():
        if before.get(name) != value:
            raise OutputError(
                f"{settings.output} was written with {name} {_show(before.get(name))}, and now it "
                f"is {_show(value)}; use the same again, or name another --output."
            )


def _described(settings: ScoreSettings, model: ModelFacts) -> dict[str, Any]:
    return {
        "model": model.name,
        "version": model.version,
        "manifest SHA-256": model.digest,
        "samples": model.samples,
        "seed": model.seed,
        **{name: getattr(settings, name) for name in _FIELDS},
    }


def _read(file: Path, output: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        content = None
    except OSError as error:
        raise unwritable(file, error, output) from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise OutputError(
            f"{output} exists, but {file.name} beside it does not say how it was written; name "
            "another --output, or remove it."
        )
    return content


def _show(value: Any) -> str:
    return "not named" if value is None else str(value)
