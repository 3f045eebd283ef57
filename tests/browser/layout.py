"""Says whether what a page shows has room, and whether a sentence is read in its order."""

from playwright.sync_api import Locator, Page

# A phone shows a page that is too wide from farther away, so its `innerWidth` grows with the page.
_EXCESS = """() => {
  const { scrollWidth, clientWidth } = document.documentElement;
  return scrollWidth - clientWidth;
}"""
# One pixel is the width of what only a screen reader gets.
_TOO_LONG = """() => [...document.querySelectorAll("main p, main li")]
  .filter(({ scrollWidth, clientWidth }) => clientWidth > 1 && scrollWidth > clientWidth)
  .map(({ textContent }) => textContent)"""
_WORDS = r"""(element) => {
  element.style.whiteSpace = "nowrap";
  const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const words = [];
  while (texts.nextNode()) {
    for (const { 0: word, index } of texts.currentNode.data.matchAll(/\S+/g)) {
      const range = document.createRange();
      range.setStart(texts.currentNode, index);
      range.setEnd(texts.currentNode, index + word.length);
      words.push([word, range.getBoundingClientRect().left]);
    }
  }
  return words;
}"""


def assert_fits(page: Page) -> None:
    """Assert that nobody has to scroll the page sideways, and that no text leaves its place."""
    excess = page.evaluate(_EXCESS)
    assert excess <= 0, excess
    too_long = page.evaluate(_TOO_LONG)
    assert too_long == [], too_long


def assert_reads_from_left_to_right(element: Locator) -> None:
    """Assert that the words of an element stand in their order, were they all on one line."""
    words: list[tuple[str, float]] = element.evaluate(_WORDS)
    seen = [word for word, _ in sorted(words, key=lambda each: each[1])]
    assert seen == [word for word, _ in words], seen
