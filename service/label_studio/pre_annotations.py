"""Writes predictions as Label Studio's pre-annotations, and reads labels from annotations.

https://labelstud.io/guide/predictions describes the format. Knows no model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from service.label_studio.choices_controls import ChoicesControl
from service.label_studio.requests_of_label_studio import Annotation

_DIGITS = 4


def request_id_of_task(task: int, model: str) -> str:
    """Return the id under which a model's latest answer for a task waits for its true label.

    No two projects of a Label Studio share the number of a task.
    """
    return f"label-studio-{task}-{model}"


def pre_annotation(
    row: Mapping[str, Any], controls: Sequence[ChoicesControl], model_version: str
) -> dict[str, Any] | None:
    """Return the prediction of a task; None: no control has a choice for its class.

    row: the answer for its image, with `label`, `confidence` and, if uncertain, the entropies.
    """
    label, confidence = row["label"], float(row["confidence"])
    result = [
        {
            "id": f"dropserve-{control.name}",
            "from_name": control.name,
            "to_name": control.image,
            "type": "choices",
            "value": {"choices": [control.choices[label]]},
            "score": confidence,
            "meta": {"text": [_describe(row)]},
        }
        for control in controls
        if label in control.choices
    ]
    if not result:
        return None
    return {"result": result, "score": confidence, "model_version": model_version}


def true_label(annotation: Annotation, controls: Sequence[ChoicesControl]) -> str | None:
    """Return the class that an annotation chooses; None: none, several, or the task was skipped."""
    if annotation.was_cancelled:
        return None
    by_name = {control.name: control for control in controls}
    chosen = {
        by_name[result.from_name].classes.get(choice)
        for result in annotation.result
        if result.from_name in by_name and result.value is not None
        for choice in result.value.choices
    }
    return chosen.pop() if len(chosen) == 1 else None


def _describe(row: Mapping[str, Any]) -> str:
    """Return the doubt of an answer in words, for the people who label."""
    said = [
        f"{name.replace('_', ' ')} {row[name]:.{_DIGITS}f} nats"
        for name in ("mutual_information", "predictive_entropy")
        if name in row
    ]
    said.insert(0, f"confidence {row['confidence']:.{_DIGITS}f}")
    if row.get("abstain"):
        said.append(f"abstains: {row.get('abstain_because')}")
    return ", ".join(said)
