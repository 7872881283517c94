"""What answers, titles and names look like on the page, and that none of them can act there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Request, Route, expect

from tests.e2e.conftest import OpenPage
from tests.e2e.stored import dialogue, store_conversations
from tests.instance import Instance

pytestmark = pytest.mark.timeout(175)

EVERYTHING = (Path(__file__).parent / "everything.md").read_text()

# What got through in comparable services: links, raw SVG and HTML, Mermaid and KaTeX.
ATTACKS = r"""
[a](javascript:window.ran=1) [b](data:text/html,<script>window.ran=1</script>)
![c](https://evil.example/c.png) <img src=x onerror="window.ran=1"> <svg onload="window.ran=1">

<iframe srcdoc="<script>parent.window.ran=1</script>"></iframe>

```html
<script>window.ran = 1</script>
```

```svg
<svg xmlns="http://www.w3.org/2000/svg"><script>window.ran = 1</script></svg>
```

```x"><img/src/onerror=window.ran=1>
code
```

\( \href{javascript:window.ran=1}{x} \) \( \htmlData{x=<img src=x onerror=window.ran=1>}{y} \)
\( \text{<img src=x onerror=window.ran=1>} \)

```mermaid
%%{init: {"securityLevel": "loose", "htmlLabels": true, "themeCSS": "*{fill:url(https://evil.example)}"}}%%
graph TD
  A["<img src=x onerror=window.ran=1>"] --> B["<script>window.ran=1</script>"]
  click A call alert()
  click B href "javascript:window.ran=1"
```

```mermaid
sequenceDiagram
  participant A as Alice<img src=x onerror="window.ran=1">
  A->>A: $$\href{javascript:window.ran=1}{x}$$ <img src=x onerror="window.ran=1">
```
"""


@pytest.fixture
def show(echo: Instance, open_page: OpenPage) -> Iterator[Callable[..., Locator]]:
    """Opens a conversation with one answer; the answer.

    Nothing in it may ask another host for anything.
    """
    elsewhere: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((echo.url, "data:")):
            elsewhere.append(request.url)

    def show_answer(text: str, title: str = "A title") -> Locator:
        [conversation] = store_conversations(echo, "reader", [(title, dialogue(text))])
        page = open_page("reader")
        page.on("request", note)
        page.goto(f"/c/{conversation}")
        return page.get_by_test_id("message-assistant").locator(".markdown")

    yield show_answer
    assert elsewhere == []


def test_everything_that_models_write_is_drawn(show: Callable[..., Locator]) -> None:
    answer = show(EVERYTHING)
    expect(answer.locator(".math[data-drawn=yes]")).to_have_count(4)
    expect(answer.locator(".math[data-drawn=failed]")).to_have_text(r"\( \frac{ \)")
    expect(answer).to_contain_text("prices are $5 and $6.")
    expect(answer.locator("input[type=checkbox]")).to_have_count(2)
    expect(answer.locator("input:checked")).to_have_count(1)
    expect(answer.locator("td.right").first).to_have_css("text-align", "right")
    expect(answer.locator(".hljs-keyword").first).to_have_text("import")
    expect(answer.locator(".diagram[data-drawn=yes] img")).to_have_count(1)
    expect(answer.locator(".diagram[data-drawn=failed] code")).to_contain_text("A[Start")
    expect(answer.locator(".footnotes li")).to_have_count(2)

    thought = answer.get_by_test_id("thought")
    expect(thought.locator("p")).to_have_count(0)
    thought.locator("summary").click()
    expect(thought.locator("p")).to_be_visible()

    diagram = answer.locator(".diagram[data-drawn=yes]")
    expect(diagram.locator("pre")).to_be_hidden()
    diagram.get_by_role("button", name="Source").click()
    expect(diagram.locator("pre")).to_be_visible()


def test_wide_tables_scroll_by_themselves(show: Callable[..., Locator]) -> None:
    wide = "| " + " | ".join(f"column-number-{n}" for n in range(20)) + " |\n" + "|--" * 20 + "|\n"
    answer = show(wide)
    table = answer.locator(".table")
    inside, outside = table.evaluate("element => [element.scrollWidth, element.clientWidth]")
    assert inside > outside
    page = answer.page
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_nothing_in_an_answer_runs_or_loads(show: Callable[..., Locator]) -> None:
    answer = show(ATTACKS, title='<img src=x onerror="window.ran=1">')
    diagrams = answer.locator(".diagram[data-drawn]")
    expect(diagrams).to_have_count(2)
    expect(answer.locator(".math[data-drawn]")).to_have_count(3)
    assert answer.locator("script, iframe, svg, object, form, a[href^=javascript]").count() == 0
    assert answer.locator("[onerror], [onload], [onclick], [data-x]").count() == 0
    links = answer.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert set(links) == {"https://evil.example/c.png"}  # shown as a link, not fetched
    sources = answer.locator("img").evaluate_all("images => images.map(image => image.src)")
    assert all(source.startswith("data:image/svg+xml;") for source in sources)
    page = answer.page
    expect(page.get_by_role("heading", level=1)).to_have_text('<img src=x onerror="window.ran=1">')
    assert page.evaluate("window.ran") is None


def test_names_of_models_are_text(open_page: OpenPage) -> None:
    name = "<img src=x onerror=window.ran=1>"

    def add_model(route: Route) -> None:
        answer = route.fetch()
        body = json.loads(answer.body())
        body["models"].append({**body["models"][0], "id": name})
        route.fulfill(response=answer, json=body)

    page = open_page("reader", service_workers="block")  # its requests pass no route
    page.route("**/api/models", add_model)
    page.reload()
    expect(page.get_by_test_id("model-select")).to_contain_text(name)
    assert page.locator("img").count() == 0
    assert page.evaluate("window.ran") is None


def test_a_chosen_theme_is_there_before_anything_is_drawn(open_page: OpenPage) -> None:
    page = open_page("reader", color_scheme="light")
    light = background(page)
    page.evaluate("localStorage.setItem('canopy.theme', 'dark')")
    page.add_init_script(
        "addEventListener('DOMContentLoaded', () => "
        "{ window.first = document.documentElement.dataset.theme })"
    )
    page.reload()
    expect(page.get_by_test_id("composer")).to_be_visible()
    assert page.evaluate("window.first") == "dark"
    assert background(page) != light


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_an_unknown_address_has_a_page(open_page: OpenPage) -> None:
    page = open_page("reader", expected="status of 404")
    answer = page.goto("/elsewhere")
    assert answer is not None
    assert answer.status == 404
    expect(page.get_by_role("heading", name="Nothing is here")).to_be_visible()
    page.get_by_role("link", name="Go to the chat").click()
    expect(page.get_by_test_id("composer")).to_be_visible()
