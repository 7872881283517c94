"""axe finds nothing wrong on any page, in both themes, on a wide screen and on a phone's."""

from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, Locator, Page

from cli.home import FRONTEND
from tests.e2e.browser import close_dialog
from tests.e2e.conftest import OpenPage
from tests.e2e.stored import dialogue, store_conversations
from tests.instance import Instance

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("models")]

AXE = FRONTEND / "node_modules" / "axe-core" / "axe.min.js"
EVERYTHING = (Path(__file__).parent / "everything.md").read_text()
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
# A change of the theme reaches the page in its next frames, and controls in a transition.
_SETTLE = """async () => {
  const frame = () => new Promise(done => requestAnimationFrame(done));
  await frame();
  await frame();
  const changes = document.getAnimations().filter(each => each instanceof CSSTransition);
  changes.forEach(each => each.finish());
}"""
_RUN = """rules => axe.run(document, { resultTypes: ["violations"], ...rules })
  .then(found => found.violations)"""
_CONTRAST = {"runOnly": ["color-contrast"]}  # all that depends on the theme alone
LOOKS = ((WIDE, "light", {}), (WIDE, "dark", _CONTRAST), (PHONE, "dark", {}))


def violations(page: Page) -> list[str]:
    """What axe finds on the page as it is, in both themes and sizes."""
    problems: list[str] = []
    for size, theme, rules in LOOKS:
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.evaluate(_SETTLE)
        for violation in page.evaluate(_RUN, rules):
            for node in violation["nodes"][:3]:
                problems.append(
                    f"{size['width']} {theme} {violation['id']} {node['target']}: "
                    f"{node['failureSummary']}"
                )
    page.set_viewport_size(WIDE)
    return problems


def visit(page: Page, address: str, shown: str) -> list[str]:
    """Opens an address, waits for an element, and looks."""
    page.goto(address)
    page.locator(shown).first.wait_for()
    return [f"{address} {violation}" for violation in violations(page)]


def test_pages_of_a_member(echo: Instance, open_page: OpenPage) -> None:
    [conversation] = store_conversations(echo, "reader", [("Everything", dialogue(EVERYTHING))])
    page = with_axe(open_page("reader", expected="status of 404"))
    problems = visit(page, "/", "[data-testid=composer]")
    problems += visit(page, f"/c/{conversation}", ".diagram[data-drawn=yes]")
    problems += visit(page, "/c/999999999", ".notice")
    problems += visit(page, "/elsewhere", ".notice")
    problems += visit(page, "/api/docs", "details")
    problems += visit(page, "/connect", "main")
    assert problems == []


def test_what_opens_above_the_page(echo: Instance, open_page: OpenPage) -> None:
    [conversation] = store_conversations(echo, "reader", [("Trees", dialogue("An answer"))])
    page = with_axe(open_page("reader"))
    page.goto(f"/c/{conversation}")
    item = page.locator(f"[data-testid=conversation-item][data-id='{conversation}']")
    open_menu(item)
    problems = violations(page)  # which closes the menu, as another size of the page does
    open_menu(item)
    page.get_by_test_id("menu-share").click()
    page.get_by_test_id("share-make").click()
    link = page.get_by_test_id("share-link")
    link.wait_for()
    problems += violations(page)
    address = link.input_value()
    close_dialog(page)
    page.keyboard.press("Control+k")
    page.get_by_test_id("search-input").fill("Trees")
    page.get_by_test_id("search-result").first.wait_for()
    problems += violations(page)
    close_dialog(page)
    page.get_by_role("heading", level=1).click()
    page.keyboard.press("?")
    page.locator("dialog[open]").wait_for()
    problems += violations(page)
    problems += visit(page, address, "[data-testid=shared]")
    assert problems == []


def test_attached_texts(open_page: OpenPage) -> None:
    page = with_axe(open_page("reader"))
    page.reload()
    file = FilePayload(name="notes.md", mimeType="text/markdown", buffer=b"# Trees")
    page.get_by_test_id("attach-input").set_input_files([file])
    page.get_by_test_id("attachment-open").wait_for()
    problems = violations(page)
    page.get_by_test_id("attachment-open").click()
    page.get_by_test_id("attachment-preview").wait_for()
    problems += violations(page)
    close_dialog(page)
    page.get_by_test_id("attachment-remove").click()
    assert problems == []


def test_two_models_side_by_side(open_page: OpenPage) -> None:
    page = with_axe(open_page("reader", expected="status of 429", service_workers="block"))
    page.reload()
    page.get_by_test_id("model-select").select_option("quick")
    page.get_by_test_id("answering").click()
    page.get_by_test_id("preset-settings").wait_for()
    problems = violations(page)
    page.get_by_role("menuitemradio", name="steady").click()
    page.get_by_test_id("composer").fill("one two three")
    page.get_by_test_id("composer").press("Enter")
    page.get_by_test_id("keep").nth(1).wait_for()
    problems += violations(page)
    refusal = '{"error": {"message": "too many requests are running"}}'
    page.route("**/regenerate", lambda route: route.fulfill(status=429, body=refusal))
    page.get_by_test_id("composer").fill("and four")
    page.get_by_test_id("composer").press("Enter")
    page.get_by_test_id("compared-refused").wait_for()
    problems += violations(page)
    assert problems == []


def open_menu(item: Locator) -> None:
    """Opens the menu of a conversation in the list."""
    item.hover()
    item.get_by_test_id("conversation-menu").click()
    item.page.get_by_test_id("menu").wait_for()


def test_pages_of_an_operator(open_page: OpenPage) -> None:
    page = with_axe(open_page("operator"))
    problems = visit(page, "/tree/", "[data-select]")
    page.get_by_test_id("view-table").click()
    page.get_by_test_id("node-table").wait_for()
    problems += violations(page)
    problems += visit(page, "/tree/queues", "[data-testid=queue-table] tbody tr")
    assert problems == []


def test_pages_without_a_login(open_page: OpenPage) -> None:
    page = with_axe(open_page(None, expected="status of 403"))
    problems = visit(page, "/", "[data-testid=login-username]")
    problems += visit(page, "/login?token=used", ".notice")
    assert problems == []


def with_axe(page: Page) -> Page:
    page.add_init_script(path=AXE)
    return page
