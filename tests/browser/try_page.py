"""Uses the page Try as a person does: by the names of its controls, a mouse and a keyboard."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from playwright.sync_api import FilePayload, Locator, Page, Response, expect

Stroke = Sequence[tuple[float, float]]
"""Points of the drawing area, x and y in 0..1, which a line connects."""

FOUR: Sequence[Stroke] = (
    ((0.45, 0.10), (0.30, 0.50), (0.35, 0.58), (0.70, 0.50)),
    ((0.65, 0.30), (0.55, 0.60), (0.45, 0.92)),
)
"""A four as it is written by hand, in two strokes."""

_SHARES_OF_A_LINE = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)
"""How far the mouse is along a line after each of its moves."""


@dataclass
class Answer:
    """The response to a question that the page has asked."""

    response: Response | None = None

    @property
    def url(self) -> str:
        """The address that the page has asked, with its query."""
        assert self.response is not None
        return self.response.url

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        assert self.response is not None
        found: dict[str, Any] = self.response.json()
        return found

    @property
    def prediction(self) -> dict[str, Any]:
        """The prediction for the one image of the question."""
        (found,) = self.body["predictions"]
        assert isinstance(found, dict)
        return found


@dataclass
class TryPage:
    """The page Try, and the controls that tests use more than once."""

    page: Page

    @classmethod
    def open(cls, page: Page, model: str = "digits") -> Self:
        """Open the page, and choose a model if it is not the default one."""
        page.goto("/")
        opened = cls(page)
        expect(opened.example("Noise")).to_be_visible()  # the last thing that is loaded
        if model != "digits":
            opened.model.select_option(model)
        return opened

    @property
    def model(self) -> Locator:
        return self.page.get_by_role("combobox", name="Model")

    @property
    def answer(self) -> Locator:
        return self.page.get_by_role("region", name="The answer")

    @property
    def spoken(self) -> Locator:
        """What a screen reader says of an answer."""
        return self.answer.get_by_role("status").first

    @property
    def refusal(self) -> Locator:
        """The sentence on why there is no answer, in its place."""
        return self.page.locator("#answer > .notice")

    @property
    def heat_map(self) -> Locator:
        """The part of the page that shows which parts of the image decided."""
        return self.page.locator("#heat-map")

    @property
    def pad(self) -> Locator:
        return self.page.get_by_role("img", name="Drawing area")

    @property
    def request(self) -> Locator:
        """The request that the page shows."""
        return self.page.get_by_label("The request")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def example(self, name: str) -> Locator:
        group = self.page.get_by_role("group", name="Or one of these")
        return group.get_by_role("button", name=name, exact=True)

    def slider(self, name: str) -> Locator:
        return self.page.get_by_role("slider", name=name)

    def open_settings(self) -> None:
        self.page.get_by_text("Settings", exact=True).click()

    @contextmanager
    def answered(self) -> Iterator[Answer]:
        """Wait at the end of the block for the next answer, which the yielded object then has."""
        answer = Answer()
        with self.page.expect_response(lambda response: "/uncertainty" in response.url) as info:
            yield answer
        answer.response = info.value

    def upload(self, *files: bytes, name: str = "image.png", kind: str = "image/png") -> None:
        """Choose files with the button; a name is numbered where there are several."""
        names = [name] if len(files) == 1 else [f"{number}-{name}" for number in range(len(files))]
        payloads: list[FilePayload] = [
            {"name": each, "mimeType": kind, "buffer": data}
            for each, data in zip(names, files, strict=True)
        ]
        self.button("Image").click()
        with self.page.expect_file_chooser() as chooser:
            self.button("Choose images…").click()
        chooser.value.set_files(payloads)

    def draw(self, strokes: Sequence[Stroke], pause_milliseconds: float = 0) -> None:
        """Draw with the mouse, and pause after each move of it."""
        for stroke in self._on_the_page(strokes):
            self.page.mouse.move(*stroke[0])
            self.page.mouse.down()
            for (x, y), (end_x, end_y) in pairwise(stroke):
                for share in _SHARES_OF_A_LINE:
                    self.page.mouse.move(x + share * (end_x - x), y + share * (end_y - y))
                    self.page.wait_for_timeout(pause_milliseconds)
            self.page.mouse.up()

    def draw_with_finger(self, strokes: Sequence[Stroke]) -> None:
        """Draw on a touch screen."""
        session = self.page.context.new_cdp_session(self.page)
        for stroke in self._on_the_page(strokes):
            for place, (x, y) in enumerate(stroke):
                kind = "touchMove" if place else "touchStart"
                finger = {"type": kind, "touchPoints": [{"x": x, "y": y}]}
                session.send("Input.dispatchTouchEvent", finger)
            session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def _on_the_page(self, strokes: Sequence[Stroke]) -> list[Stroke]:
        self.pad.scroll_into_view_if_needed()
        box = self.pad.bounding_box()
        assert box is not None
        return [
            [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
            for stroke in strokes
        ]
