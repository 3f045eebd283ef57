"""A version that is published while the page Try is open answers there as any other does."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from playwright.sync_api import expect

from model.bundle.store import MANIFEST_FILE
from tests.browser.conftest import OpenContext
from tests.browser.try_page import TryPage
from tests.bundles import copy_bundle, edit_manifest
from tests.service.process import ServiceProcess, service_process

pytestmark = pytest.mark.browser

OTHER_NAMES = ("constructor", "toString", *(f"kind {number}" for number in range(2, 10)))


@dataclass
class Publisher:
    """A service of the digits, to which a second version of other class names can be added."""

    service: ServiceProcess
    models: Path
    bundle: Path

    def publish(self, class_names: tuple[str, ...]) -> None:
        version = copy_bundle(self.bundle, self.models.with_name("unpublished"), version=2)
        examples = orjson.loads((version / MANIFEST_FILE).read_bytes())["examples"]
        for example in examples:
            example["label"] = class_names[int(example["label"])]
        edit_manifest(version, class_names=class_names, examples=examples)
        version.rename(self.models / "digits" / "2")
        self.service.wait_for("model in service", count=2)


@pytest.fixture
def publisher(bundle_folder: Path, tmp_path: Path) -> Iterator[Publisher]:
    models = tmp_path / "models"
    copy_bundle(bundle_folder, models)
    with service_process(models, "--watch-seconds", "0.1") as service:
        yield Publisher(service, models, bundle_folder)


@pytest.mark.parametrize("class_names", [tuple("0123456789"), OTHER_NAMES], ids=["same", "other"])
def test_example_of_the_former_version_is_answered_by_the_new_one(
    class_names: tuple[str, ...], publisher: Publisher, open_context: OpenContext
) -> None:
    try_page = TryPage.open(open_context("light", publisher.service.url).new_page())
    examples = try_page.page.get_by_role("group", name="Or one of these").get_by_role("button")
    publisher.publish(class_names)
    examples.first.click()
    expect(try_page.answer.get_by_text("digits, version 2")).to_be_attached()
    expect(try_page.answer).not_to_contain_text("NaN")
    classes = try_page.answer.get_by_role("list", name="Probability of each class")
    assert classes.locator(".class-name").all_inner_texts() == list(class_names)
    expect(try_page.page.get_by_text(f"10 classes: {', '.join(class_names)}")).to_be_visible()

    with try_page.page.expect_response("**/uncertainty*") as answer:
        examples.nth(1).click()
    assert answer.value.json()["version"] == "2"
