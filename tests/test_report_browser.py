"""The page in a real browser: it draws, asks nothing of any network, says no error, and its controls do what they say.

Skipped with a reason where the package playwright or a Chromium is missing (MRBCR_CHROMIUM names one).
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.helpers import deconvolve, pixels, spots, tiny_weights

EVIL = '<script>document.title="evil"</script><img src=x onerror="document.title=1">'
SIZES = [(1280, "light"), (400, "dark")]


@dataclass
class Opened:
    """A page that is shown, and all that it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def changed(self, selector: str, act: Any) -> bool:
        """Whether an element looks other after an action."""
        before = self.page.locator(selector).screenshot()
        act()
        self.page.wait_for_timeout(150)  # a frame or two; nothing is expected within a time
        return bool(before != self.page.locator(selector).screenshot())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("MRBCR_CHROMIUM") or next((p for p in map(shutil.which, names) if p), None)
    if path is None:
        pytest.skip("no Chromium was found; set MRBCR_CHROMIUM to one")
    with api.sync_playwright() as runner:
        started = runner.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages on a plane, a stack of two channels (one with a wicked name) and a time series."""
    folder = tmp_path_factory.mktemp("reports")
    weights = tiny_weights(folder / "w.safetensors")
    scale = {"PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1}
    tifffile.imwrite(folder / "plane.ome.tif", spots((300, 420)), metadata={"axes": "YX", **scale})
    stack = spots((2, 6, 128, 160))
    stack[1] = stack[1, :, ::-1]
    named = {"Channel": {"Name": ["actin", EVIL]}, "PhysicalSizeZ": 0.3}
    tifffile.imwrite(folder / "stack.ome.tif", stack, metadata={"axes": "CZYX", **scale, **named})
    tifffile.imwrite(folder / "time.ome.tif", spots((3, 100, 120)), metadata={"axes": "TYX"})
    for name in ("plane", "stack", "time"):
        args = (folder / f"{name}.ome.tif", "-m", weights, "-o", folder / f"{name}.ome.zarr")
        assert deconvolve(*args, "--report", folder / f"{name}.html", "-q") == 0
    return folder


@pytest.fixture
def opened(browser: Any, reports: Path) -> Iterator[Any]:
    """A function that opens a report by name and width, and afterwards finds that nothing was said or asked for."""
    seen: list[tuple[Opened, Any]] = []

    def show(name: str, width: int = 1280, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.said.append(message.text))
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.on("request", lambda request: found.asked.append(request.url))
        found.page.goto((reports / f"{name}.html").as_uri())
        found.page.wait_for_selector("body[data-shown]")
        seen.append((found, context))
        return found

    yield show
    for found, context in seen:
        assert found.said == []
        assert found.asked == [found.page.url]
        context.close()


def drag(page: Any, selector: str, start: tuple[float, float], stop: tuple[float, float]) -> None:
    """Drag with the mouse between two places of an element, as shares of its width and height."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    size = element.bounding_box()
    places = [{"x": x * size["width"], "y": y * size["height"]} for x, y in (start, stop)]
    element.hover(position=places[0])
    page.mouse.down()
    element.hover(position=places[1])
    page.mouse.up()


def variety(picture: bytes) -> int:
    """How many grey levels a screenshot has."""
    from PIL import Image

    return len(np.unique(np.asarray(Image.open(io.BytesIO(picture)).convert("L"))))


@pytest.mark.parametrize(("width", "scheme"), SIZES)
@pytest.mark.parametrize("name", ["plane", "stack", "time"])
def test_pages_draw_at_every_width_and_fit_it(opened: Any, name: str, width: int, scheme: str) -> None:
    page = opened(name, width, scheme).page
    for selector in ("#stage", "#line-before", "#line-after"):
        assert variety(page.locator(selector).screenshot()) > 30
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in ("profile", "histogram", "spectrum", "frc"):
        assert page.locator(f"#plot-{plot} path.before").count() == 1
        assert "NaN" not in page.locator(f"#plot-{plot}").inner_html()
    assert page.locator("#broken").is_hidden()
    assert page.locator("#stack").is_visible() == (name == "stack")


def test_the_slider_moves_by_keyboard_and_by_hand(opened: Any) -> None:
    shown = opened("plane")
    slider = shown.page.locator("#slider")
    slider.focus()
    assert shown.changed("#stage", lambda: [shown.page.keyboard.press("ArrowRight") for _ in range(20)])
    assert slider.input_value() == "70" and slider.get_attribute("aria-valuetext") == "70 % before"
    drag(shown.page, "#stage", (0.6, 0.5), (0.25, 0.5))
    assert abs(float(slider.input_value()) - 25) <= 1


def test_a_line_that_is_drawn_shows_the_pixels_under_it(opened: Any, reports: Path) -> None:
    shown = opened("plane")
    page = shown.page
    stage = ".stage.line:has(#line-after)"
    assert shown.changed("#plot-profile", lambda: drag(page, stage, (0.2, 0.5), (0.7, 0.5)))
    x0, y0, x1, y1 = (int(page.locator(f"#{name}").input_value()) for name in ("x0", "y0", "x1", "y1"))
    assert y0 == y1 and x1 - x0 > 50
    found = page.evaluate("alongLine(plane(detailOf().after), state.line, 1).values")
    assert np.allclose(found, pixels(reports / "plane.ome.zarr")[y0, x0 : x1 + 1])
    assert f"{(x1 - x0) * 0.1:.3g} µm" in page.locator("#line-length").inner_text()
    page.locator("#y0").fill(str(y0 + 7))
    page.locator("#y0").press("Enter")
    assert page.evaluate("state.line.y0 - state.line.y1") == 7


def test_the_channel_changes_and_a_wicked_name_stays_text(opened: Any) -> None:
    shown = opened("stack")
    page = shown.page
    assert EVIL in page.locator("#channel").inner_text()
    assert shown.changed("#stage", lambda: page.locator("#channel").select_option("1"))
    page.wait_for_selector("body[data-shown='1,0']")
    assert "evil" not in page.title() and page.locator("img").count() == 0


def test_the_time_point_changes_and_unknown_sizes_have_no_bar(opened: Any) -> None:
    shown = opened("time")
    page = shown.page
    assert shown.changed("#stage", lambda: page.locator("#time").select_option("2"))
    page.wait_for_selector("body[data-shown='0,2']")
    assert page.locator(".bar:visible").count() == 0 and "no scale bars" in page.locator("#scale-said").inner_text()


def test_the_cross_hair_moves_by_keyboard_and_by_hand(opened: Any) -> None:
    shown = opened("stack")
    page = shown.page
    page.locator("#cross-z").focus()
    z = int(page.locator("#cross-z").input_value())
    assert shown.changed("#ortho", lambda: page.keyboard.press("ArrowLeft" if z else "ArrowRight"))
    drag(page, "#ortho .stage >> nth=0", (0.5, 0.5), (0.25, 0.75))
    assert abs(int(page.locator("#cross-x").input_value()) - 40) <= 1
    assert abs(int(page.locator("#cross-y").input_value()) - 96) <= 1


def test_grey_scale_and_colours_follow_the_controls_and_are_stated(opened: Any) -> None:
    shown = opened("plane")
    page = shown.page
    assert "on the same scale" in page.locator("#scale-said").inner_text()
    assert shown.changed("#stage", lambda: page.locator("#map").select_option("viridis"))
    assert shown.changed("#stage", lambda: page.locator("#white").fill("95"))
    assert shown.changed("#stage", lambda: page.locator("#own").check())
    assert "cannot be compared" in page.locator("#scale-said").inner_text()
    bar = page.locator("#stage .bar")
    assert bar.inner_text() in ("5 µm", "10 µm")
    width = float(bar.inner_text().split()[0]) / 42.0  # of 420 px of 0.1 um
    assert bar.bounding_box()["width"] == pytest.approx(
        width * page.locator("#stage").bounding_box()["width"], rel=0.02
    )
