"""Says below the title of each plot of a report what it shows, and what to do with it."""

from collections.abc import Mapping

CAPTIONS: Mapping[str, str] = {
    "Learning curves": "The loss of the training images, and where there are validation images, "
    "theirs. If the validation loss rises while the other falls, the network learns its training "
    "images by heart: more images, more dropout or fewer epochs help.",
    "Hidden layers, epoch by epoch": "Units that never fire, inputs that are not above 0, and how "
    "strong the gradients are. A jump in the first plot usually means a learning rate too high.",
    "Confusion matrix": "Rows are the true classes, columns the answers. A number off the diagonal "
    "counts images of the row's class that were taken for the column's.",
    "Reliability": "Of answers with a confidence of 80 %, 80 % should be right. Points below the "
    "dashed line are too sure of themselves.",
    "Risk and coverage": "How many of the given answers are wrong, if only the surest ones are "
    "given. Read the error rate that you accept on the left; below it stands how many images get "
    "an answer. The lower the curve, the better the confidence tells right from wrong.",
    "Prediction sets": "How often a set holds the true class, and how many classes are in it, for "
    "each coverage that is asked for. Points should be on the dashed line, and sets small.",
    "Uncertainties": "The farther apart right and wrong answers are, the more this measure tells. "
    "Entropy: how undecided the answer is. Mutual information: how much the thinned networks "
    "disagree. Typicality: the share of validation images that look no more typical.",
    "Noise, rotation, blur": "What happens on images that get worse. Confidence should fall along "
    "with the accuracy. Measured on a draw of the test images, of large ones on few, so that the "
    "accuracy at 0 differs from that of all test images.",
    "Most and least certain images": "With the entropy of the answer. Look at the last ones: are "
    "they ambiguous to you, too?",
    "Most confident mistakes": "Look whether the network is wrong here, or the label.",
}
"""Markdown, by title."""


def plot_sections(titles: Mapping[str, str]) -> str:
    """Return a heading, a caption and the picture of each plot; titles by file name."""
    parts = [
        f"### {title}\n\n{CAPTIONS[title]}\n\n![{title}]({name})" for name, title in titles.items()
    ]
    return "\n\n".join(["## Plots", *parts]) if parts else ""
