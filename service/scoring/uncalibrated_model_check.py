"""Refuses what only a calibrated model has, where the model is not calibrated."""

from model.errors import SettingsError
from model.uncertainty.calibration import MIN_CALIBRATION_IMAGES
from service.scoring.score_settings import ScoreSettings
from service.scoring.scoring_process_messages import ModelFacts

_LEVELS = ("coverage", "sets", "max_risk", "max_false_alarm")
_SORT = "typicality"


def uncalibrated_warning(settings: ScoreSettings, model: ModelFacts) -> str | None:
    """Return a sentence that says which fields a model leaves empty; None: it is calibrated.

    Raises:
        SettingsError: an option is about one of these fields.
    """
    if model.calibrated:
        return None
    defaults = ScoreSettings.model_fields
    option = next(
        (each for each in _LEVELS if getattr(settings, each) != defaults[each].default), None
    )
    if settings.sort == _SORT:
        option = "sort"
    if option is not None:
        raise SettingsError(
            f"--{option.replace('_', '-')}: {model.name} version {model.version} is not "
            f"calibrated, so this has no effect; leave it out, or train the model with "
            f"{MIN_CALIBRATION_IMAGES} validation images or more."
        )
    return (
        f"Warning: {model.name} version {model.version} is not calibrated, so prediction_set, "
        "typicality, abstain and abstain_because stay empty."
    )
