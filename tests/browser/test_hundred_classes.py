"""The page Try with a model of a hundred classes: the likeliest are shown, all on demand."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.accessibility import assert_accessible
from tests.browser.hundred_classes import CLASSES, NAME, picture
from tests.browser.layout import assert_fits
from tests.browser.try_page import TryPage
from tests.pictures import encode

pytestmark = pytest.mark.browser

UNSEEN = 99  # the number of a picture that was not trained on


def test_likeliest_classes_are_shown_and_all_on_demand(page: Page) -> None:
    try_page = TryPage.open(page, NAME)
    with try_page.answered() as answer:
        try_page.upload(encode(picture(7, UNSEEN)))
    assert answer.prediction["label"] == "kind 07"
    classes = try_page.answer.get_by_role("list", name="Probability of each class")
    expect(classes.get_by_role("listitem").first).to_contain_text("kind 07")
    assert classes.get_by_role("listitem").count() < 20

    try_page.button(f"Show all {CLASSES} classes").click()
    expect(classes.get_by_role("listitem")).to_have_count(CLASSES)
    assert_accessible(page)
    try_page.button("Show the likeliest").click()
    assert classes.get_by_role("listitem").count() < 20


def test_all_classes_fit_on_a_phone(phone_page: Page) -> None:
    try_page = TryPage.open(phone_page, NAME)
    try_page.upload(encode(picture(7, UNSEEN)))
    try_page.button(f"Show all {CLASSES} classes").click()
    assert_fits(phone_page)
