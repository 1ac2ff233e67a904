// The page: which view is shown, and what the controls do to it. All text goes in as text, never as markup.

const data = JSON.parse($("data").textContent);
const maps = Object.fromEntries(Object.entries(data.maps).map(([name, text]) => [name, bytesOf(text)]));
const SIDES = ["before", "after"];
const [, , DEPTH, HEIGHT, WIDTH] = data.size;
const pixelX = data.pixel_um, pixelY = data.pixel_y_um || data.pixel_um;
const state = { view: null, picture: null, line: null, cross: null };

const plane = (encoded) => ({ values: encoded.values, height: encoded.shape[0], width: encoded.shape[1] });
const detailOf = () => state.view.details[Math.max(0, state.picture - 1)] || state.view.details[0];
const micron = (px) => (pixelX ? ` = ${lengthText(px * pixelX)}` : "");

function look(side) {
  const own = $("own").checked;
  const known = state.view.quantiles[own ? side : "both"];
  const [black, white] = [Number($("black").value), Number($("white").value)];
  const low = quantile(data.quantile_at, known, black);
  const high = quantile(data.quantile_at, known, white);
  return { low, high: high > low ? high : low + 1, gamma: Number($("gamma").value), map: maps[$("map").value] };
}

function sayScale() {
  const [before, after] = SIDES.map(look);
  const span = (l) => `${number(l.low)} to ${number(l.high)}`;
  const own = $("own").checked;
  $("gamma-value").textContent = $("gamma").value;
  const bar = pixelX ? "" : " The pixel size is unknown, so there are no scale bars.";
  $("scale-said").textContent =
    (own ? `Before shows ${span(before)}, after ${span(after)}: brightness cannot be compared.` : `Both show ${span(before)}, on the same scale.`) +
    ` In the image's own units; percentiles of ${state.view.sampled} and the details.` + bar;
}

async function showPicture() {
  const view = state.view;
  const overview = state.picture === 0;
  const shown = overview ? view.overview : detailOf();
  await Promise.all(SIDES.map((side) => decode(shown[side])));
  const [height, width] = overview ? [HEIGHT, WIDTH] : shown.place.slice(2);
  const stage = $("stage");
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.width = $("slider").style.width = `min(100%, ${(72 * width) / height}vh)`;
  SIDES.forEach((side) => paint($(`shown-${side}`), plane(shown[side]), look(side)));
  scaleBar(stage, pixelX ? width * pixelX : null);
  const boxes = stage.querySelector(".boxes");
  boxes.replaceChildren();
  if (overview) {
    view.details.forEach((detail, k) => {
      const [y, x, h, w] = detail.place;
      if (h === HEIGHT && w === WIDTH) return;
      const box = document.createElement("i");
      box.textContent = String(k + 1);
      Object.assign(box.style, { left: `${(100 * x) / WIDTH}%`, top: `${(100 * y) / HEIGHT}%`, width: `${(100 * w) / WIDTH}%`, height: `${(100 * h) / HEIGHT}%` });
      boxes.appendChild(box);
    });
  }
  $("stage-said").textContent = captionOf(view, overview, shown);
  [...$("pictures").children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === state.picture)));
}

function captionOf(view, overview, shown) {
  const z = DEPTH > 1 ? `Plane ${view.z} of ${DEPTH} (from 0), the one with most fine structure. ` : "";
  if (!overview) {
    const [y, x, h, w] = shown.place;
    return `${z}Full resolution: x ${x} to ${x + w}, y ${y} to ${y + h}, where the output has most fine structure. Stored values.`;
  }
  const sizes = SIDES.map((side) => `${shown[side].shape[1]} × ${shown[side].shape[0]}`);
  const small = sizes[0] === sizes[1] ? `${sizes[0]} px` : `${sizes[0]} px before, ${sizes[1]} px after`;
  const whole = shown.before.shape[1] === WIDTH ? "in full resolution" : `of ${WIDTH} × ${HEIGHT} as ${small}, means of the pixels`;
  return `${z}The whole plane ${whole}. ${shown.said.join(". ")}${shown.said.length ? ". " : ""}` +
    (shown.before.shape[1] === WIDTH ? "" : "Blur is best judged in the details.");
}

function makeTabs() {
  $("pictures").replaceChildren();
  const [, , height, width] = state.view.details[0].place;
  $("pictures").hidden = height === HEIGHT && width === WIDTH;
  ["Overview", ...state.view.details.map((_, k, all) => (all.length > 1 ? `Detail ${k + 1}` : "Detail"))].forEach((name, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", async () => {
      const moved = detailOf();
      state.picture = k;
      await showPicture();
      if (detailOf() !== moved) await startLine();
    });
    $("pictures").appendChild(button);
  });
}

function slide(percent) {
  const cut = Math.min(100, Math.max(0, percent));
  $("slider").value = cut;
  $("slider").setAttribute("aria-valuetext", `${Math.round(cut)} % before`);
  $("stage").style.setProperty("--cut", `${cut}%`);
}

function dragging(node, move) {
  let held = false;
  const at = (event, first) => {
    const frame = node.getBoundingClientRect();
    move((event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height, first);
  };
  node.addEventListener("pointerdown", (event) => {
    held = true;
    node.setPointerCapture(event.pointerId);
    at(event, true);
  });
  node.addEventListener("pointermove", (event) => held && at(event, false));
  for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => (held = false));
}

// The line of the profile, in pixels of the detail; at first across the brightest structure of the output.
async function startLine() {
  const detail = detailOf();
  await Promise.all(SIDES.map((side) => decode(detail[side])));
  const image = plane(detail.after);
  const reach = Math.min(30, Math.floor(Math.min(image.width, image.height) / 2) - 1);
  let best = -Infinity, x = image.width >> 1, y = image.height >> 1;
  for (let j = reach; j < image.height - reach; j++) {
    for (let i = reach; i < image.width - reach; i++) {
      const value = image.values[j * image.width + i];
      if (value > best) [best, x, y] = [value, i, j];
    }
  }
  let score = -1;
  for (const [dx, dy] of [[1, 0], [0, 1], [0.7, 0.7], [0.7, -0.7]]) {
    const line = { x0: Math.round(x - reach * dx), y0: Math.round(y - reach * dy), x1: Math.round(x + reach * dx), y1: Math.round(y + reach * dy) };
    const { values } = alongLine(image, line, 1);
    const change = values.slice(1).reduce((sum, v, k) => sum + (Math.abs(v - values[k]) || 0), 0);
    if (change > score) [score, state.line] = [change, line];
  }
  drawLine();
}

function drawLine() {
  const detail = detailOf();
  const [top, left, height, width] = detail.place;
  const line = state.line;
  SIDES.forEach((side) => {
    const canvas = $(`line-${side}`);
    const stage = canvas.parentElement;
    stage.style.aspectRatio = `${width} / ${height}`;
    paint(canvas, plane(detail[side]), look(side));
    scaleBar(stage, pixelX ? width * pixelX : null);
    const svg = stage.querySelector("svg");
    svg.setAttribute("viewBox", `-0.5 -0.5 ${width} ${height}`);
    svg.replaceChildren();
    const unit = width / 300;
    for (const [colour, weight] of [["#000", 3.5 * unit], ["#ffb000", 1.6 * unit]]) {
      element("line", { x1: line.x0, y1: line.y0, x2: line.x1, y2: line.y1, stroke: colour, "stroke-width": weight }, svg);
    }
    element("circle", { cx: line.x0, cy: line.y0, r: 3.5 * unit, fill: "#ffb000", stroke: "#000", "stroke-width": unit }, svg);
  });
  [["x0", left], ["y0", top], ["x1", left], ["y1", top]].forEach(([key, start]) => {
    $(key).value = Math.round(line[key] + start);
    $(key).min = start;
    $(key).max = start + (key[0] === "x" ? width : height) - 1;
  });
  const thick = Math.max(1, Number($("thick").value) || 1);
  const um = pixelX ? Math.hypot((line.x1 - line.x0) * pixelX, (line.y1 - line.y0) * pixelY) : null;
  const px = Math.hypot(line.x1 - line.x0, line.y1 - line.y0);
  $("line-length").textContent = `${px.toFixed(1)} px${um ? ` = ${lengthText(um)}` : ""}`;
  const series = SIDES.map((side) => {
    const { at, values } = alongLine(plane(detail[side]), line, thick);
    return { name: side, x: at.map((share) => share * (um || px)), y: values };
  });
  plot($("plot-profile"), { label: "Intensity along the line", series, height: 260, xLabel: um ? "distance along the line, µm" : "distance along the line, px", yLabel: "intensity, image units" });
}

function moveLine(fx, fy, first) {
  const [, , height, width] = detailOf().place;
  const x = Math.round(Math.min(Math.max(fx * width - 0.5, 0), width - 1));
  const y = Math.round(Math.min(Math.max(fy * height - 0.5, 0), height - 1));
  if (first) state.line = { x0: x, y0: y, x1: x, y1: y };
  else Object.assign(state.line, { x1: x, y1: y });
  drawLine();
}

function measures() {
  const view = state.view;
  const [y, x, h, w] = view.measured;
  const place = `x ${x} to ${x + w}, y ${y} to ${y + h}${DEPTH > 1 ? `, plane ${view.z}` : ""}`;
  $("measured-said").textContent = `Spectrum and ring correlation in full resolution at ${place}; intensities of ${view.sampled}.`;
  const histogram = view.histogram;
  if (!why("plot-histogram", histogram)) {
    plot($("plot-histogram"), {
      label: "Histogram", logY: true, xLabel: "intensity, image units", yLabel: "pixels",
      series: SIDES.map((name) => ({ name, steps: true, x: histogram.edges, y: histogram[name] })),
    });
    $("histogram-said").textContent = "Counts on a logarithmic scale, common bins from the 0.01 to the 99.99 percentile of both; the ends take what lies beyond.";
  }
  const nyquist = pixelX ? 0.5 / pixelX : 0.5;
  const axis = { xRange: [0, nyquist], xLabel: pixelX ? "spatial frequency, 1/µm" : "spatial frequency, 1/px", top: pixelX ? { factor: pixelX, label: "1/px" } : null };
  const inUnit = (f) => f.map((v) => (pixelX ? v / pixelX : v));
  const spectrum = view.spectrum;
  if (!why("plot-spectrum", spectrum)) {
    plot($("plot-spectrum"), { ...axis, label: "Power spectrum", logY: true, yLabel: "power, units²", series: SIDES.map((name) => ({ name, x: inUnit(spectrum.frequency), y: spectrum[name] })) });
    $("spectrum-said").textContent = `Mean over directions and windowed tiles of ${spectrum.tile_px} px. A level tail is noise. Power that the output has where the input shows noise alone comes from the method, not from the data.`;
  } else $("spectrum-said").textContent = "";
  const frc = view.frc;
  if (!why("plot-frc", frc)) {
    const series = SIDES.filter((name) => frc[name]).map((name) => ({ name, x: inUnit(frc.frequency), y: frc[name] }));
    plot($("plot-frc"), { ...axis, xRange: [0, nyquist / 2], label: "Fourier ring correlation", yRange: [-0.2, 1.05], yLabel: "correlation", series, marks: [{ y: frc.threshold, label: "1/7" }] });
    $("frc-said").textContent =
      "Each image against itself, every second pixel; the resolution is where the curve falls below 1/7, calibrated (Koho et al. 2019), so up to half of Nyquist is shown. It takes the noise of neighbouring pixels for independent. On a camera it is; in a deconvolved image it no longer is, so the figure after is mostly too fine, or there is none: it says how far the output agrees with itself, not what it resolves.";
  } else $("frc-said").textContent = "";
  SIDES.forEach((side) => {
    const px = frc[`${side}_px`];
    const card = $(`card-${side}`).querySelector("dd");
    const more = document.createElement("small");
    card.textContent = px ? (pixelX ? lengthText(px * pixelX) : `${number(px)} px`) : "none";
    more.textContent = frc.why ? "not measured: " + frc.why : px ? `${pixelX ? `${number(px)} px, ` : ""}ring correlation${side === "after" ? "; no measured resolution, see below" : ""}` : "the ring correlation stays above 1/7";
    card.appendChild(more);
  });
}

function why(id, measured) {
  if (!measured.why) return false;
  const said = document.createElement("p");
  said.className = "why";
  said.textContent = `Not shown: ${measured.why}.`;
  $(id).replaceChildren(said);
  const caption = $(id).parentElement.querySelector("figcaption");
  if (caption) caption.textContent = "";
  return true;
}

async function showResidual() {
  const { residual, details } = state.view;
  $("residual").hidden = Boolean(residual.why);
  if (residual.why) {
    $("residual-said").textContent = `The output is not blurred again here: ${residual.why}.`;
    return;
  }
  const detail = details[0];
  await Promise.all([decode(detail.before), decode(residual.reblurred)]);
  const input = plane(detail.before), blurred = plane(residual.reblurred);
  const left = { ...input, values: input.values.map((v, i) => v - blurred.values[i]) };
  const [low, high] = [0.1, 99.9].map((p) => quantile(data.quantile_at, state.view.quantiles.before, p));
  const grey = { low, high: high > low ? high : low + 1, gamma: 1, map: maps[$("map").value] };
  const most = 3 * residual.rms || 1;
  paint($("residual-input"), input, grey);
  paint($("residual-blurred"), blurred, grey);
  paint($("residual-left"), left, { low: -most, high: most, gamma: 1, map: maps[data.difference] });
  for (const id of ["residual-input", "residual-blurred", "residual-left"]) {
    const stage = $(id).parentElement;
    stage.style.aspectRatio = `${input.width} / ${input.height}`;
    scaleBar(stage, pixelX ? input.width * pixelX : null);
  }
  $("residual-scale").textContent = `input − output blurred again: red where the input is brighter, full colour at ±${number(most)} (three RMS)`;
  const percent = residual.relative === null ? "" : `, ${number(100 * residual.relative)} % of the input's standard deviation`;
  $("residual-said").textContent =
    `Detail 1 of the output, blurred with ${residual.three_d ? "the 3-D" : "the"} PSF (${residual.psf}) and fitted to the input by gain ${number(residual.gain)} and offset ${number(residual.offset)}. ` +
    `RMS of the difference ${number(residual.rms)}${percent}; correlation of both ${residual.correlation === null ? "not defined" : residual.correlation.toFixed(3)}; ` +
    `correlation of the difference with its neighbour pixels ${residual.neighbours === null ? "not defined" : residual.neighbours.toFixed(2)}. ` +
    "Where the output explains the input, the difference is noise without structure (neighbours near 0 on a camera).";
}
