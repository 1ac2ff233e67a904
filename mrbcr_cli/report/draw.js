"use strict";
// Pure helpers of the page: arrays, pictures, plots. Nothing here knows which view is shown.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// An encoded array (see embed.py) with its values beside it, NaN where there was none; decoded once.
async function decode(encoded) {
  if (encoded.values) return encoded;
  const raw = await inflate(encoded.data);
  const count = raw.length / 2;
  const wide = encoded.shape[encoded.shape.length - 1];
  const values = new Float32Array(count);
  for (let i = 0, last = 0; i < count; i++) {
    let code = raw[i] | (raw[count + i] << 8);
    if (encoded.delta) {
      code = i % wide ? (code + last) & 65535 : code;
      last = code;
    }
    values[i] = encoded.holes && code === 65535 ? NaN : encoded.low + encoded.step * code;
  }
  encoded.values = values;
  encoded.data = null;
  return encoded;
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

// Value of a percentile between those that are known.
function quantile(at, known, percent) {
  if (percent <= at[0]) return known[0];
  for (let i = 1; i < at.length; i++) {
    if (percent <= at[i]) return known[i - 1] + ((known[i] - known[i - 1]) * (percent - at[i - 1])) / (at[i] - at[i - 1]);
  }
  return known[known.length - 1];
}

// Paint an image {values, width, height} through a colour map; NaN is a flat blue-grey.
function paint(canvas, image, look) {
  const { width, height, values } = image;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const span = look.high > look.low ? look.high - look.low : 1;
  for (let i = 0; i < width * height; i++) {
    const share = Math.min(1, Math.max(0, (values[i] - look.low) / span));
    const k = 3 * Math.round(255 * (look.gamma === 1 ? share : Math.pow(share, look.gamma)));
    const known = values[i] === values[i];
    pixels.data[4 * i] = known ? look.map[k] : 70;
    pixels.data[4 * i + 1] = known ? look.map[k + 1] : 80;
    pixels.data[4 * i + 2] = known ? look.map[k + 2] : 110;
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  const shown = canvas.clientWidth * (window.devicePixelRatio || 1);
  canvas.style.imageRendering = shown && shown < width ? "auto" : "pixelated";
}

// The largest of 1, 2, 5, 10, ... that is not above `most`.
function roundLength(most) {
  const decade = Math.pow(10, Math.floor(Math.log10(most)));
  return [5, 2, 1].map((k) => k * decade).find((v) => v <= most * 1.000001) || decade;
}

function lengthText(um) {
  const three = (value) => number(parseFloat(value.toPrecision(3)));
  if (um >= 1000) return `${three(um / 1000)} mm`;
  return um >= 1 ? `${three(um)} µm` : `${three(um * 1000)} nm`;
}

// A scale bar over a picture that is `um` wide; none where that is not known.
function scaleBar(stage, um) {
  const bar = stage.querySelector(".bar");
  if (!bar) return;
  bar.hidden = !um;
  if (!um) return;
  const length = roundLength(0.25 * um);
  bar.style.width = `${(100 * length) / um}%`;
  bar.textContent = lengthText(length);
}

function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) {
    const [head, power] = value.toExponential(1).split("e");
    return `${parseFloat(head)}e${parseInt(power, 10)}`;
  }
  if (Number.isInteger(value)) return String(value);
  return String(parseFloat(value.toPrecision(size >= 1000 ? 5 : size >= 100 ? 4 : 3)));
}

function element(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.appendChild(made);
  return made;
}

function ticks(low, high, log, most) {
  if (log) {
    const found = [];
    const from = Math.ceil(Math.log10(low) - 1e-9);
    const to = Math.floor(Math.log10(high) + 1e-9);
    const step = Math.max(1, Math.ceil((to - from) / most));
    for (let power = from; power <= to; power += step) found.push(Math.pow(10, power));
    return found;
  }
  let step = roundLength((high - low) / most);
  if ((high - low) / step > 1.7 * most) step = step * (String(step).includes("2") ? 2.5 : 2);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return found;
}

function extent(arrays, log) {
  let low = Infinity, high = -Infinity;
  for (const values of arrays) {
    for (const value of values) {
      if (Number.isFinite(value) && !(log && value <= 0)) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
  }
  if (low > high) [low, high] = log ? [1, 10] : [0, 1];
  if (low === high) high = log ? low * 10 : low + 1;
  return [low, high];
}

// Draw series {x, y, name ("before" or "after"), steps} with axes; `top` is a second scale of the same axis.
function plot(where, wanted) {
  where.replaceChildren();
  const width = Math.max(280, Math.min(1100, where.clientWidth || 400));
  const height = wanted.height || 240;
  const box = { left: 64, right: width - 12, top: wanted.top ? 34 : 14, bottom: height - 40 };
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": wanted.label }, where);
  const xs = wanted.xRange || extent(wanted.series.map((s) => s.x), false);
  const ys = wanted.yRange || extent(wanted.series.map((s) => s.y), wanted.logY);
  if (!wanted.yRange && !wanted.logY) {
    const air = 0.05 * (ys[1] - ys[0]);
    ys[0] -= air;
    ys[1] += air;
  }
  const scale = (v, log) => (log ? Math.log10(v) : v);
  const atX = (v) => box.left + ((v - xs[0]) / (xs[1] - xs[0])) * (box.right - box.left);
  const atY = (v) =>
    box.bottom - ((scale(v, wanted.logY) - scale(ys[0], wanted.logY)) / (scale(ys[1], wanted.logY) - scale(ys[0], wanted.logY))) * (box.bottom - box.top);
  for (const v of ticks(ys[0], ys[1], wanted.logY, 5)) {
    element("line", { class: "grid", x1: box.left, x2: box.right, y1: atY(v), y2: atY(v) }, svg);
    element("text", { x: box.left - 6, y: atY(v) + 4, "text-anchor": "end" }, svg, number(v));
  }
  let most = width > 600 ? 10 : 6;
  const widest = () => Math.max(...ticks(xs[0], xs[1], false, most).map((v) => number(v).length)) * 7 + 10;
  while (most > 2 && ticks(xs[0], xs[1], false, most).length * widest() > box.right - box.left) most -= 1;
  for (const v of ticks(xs[0], xs[1], false, most)) {
    element("line", { class: "axis", x1: atX(v), x2: atX(v), y1: box.bottom, y2: box.bottom + 4 }, svg);
    element("text", { x: atX(v), y: box.bottom + 16, "text-anchor": "middle" }, svg, number(v));
  }
  if (wanted.top) {
    for (const v of ticks(xs[0] * wanted.top.factor, xs[1] * wanted.top.factor, false, 5)) {
      const x = atX(v / wanted.top.factor);
      element("line", { class: "axis", x1: x, x2: x, y1: box.top - 4, y2: box.top }, svg);
      element("text", { x, y: box.top - 8, "text-anchor": "middle" }, svg, number(v));
    }
    element("text", { x: box.right, y: 10, "text-anchor": "end" }, svg, wanted.top.label);
  }
  element("path", { class: "axis", d: `M${box.left},${box.top}V${box.bottom}H${box.right}` }, svg);
  element("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, svg, wanted.xLabel);
  const middle = (box.top + box.bottom) / 2;
  element("text", { x: 11, y: middle, transform: `rotate(-90 11 ${middle})`, "text-anchor": "middle" }, svg, wanted.yLabel);
  for (const mark of wanted.marks || []) {
    element("line", { class: "mark", x1: box.left, x2: box.right, y1: atY(mark.y), y2: atY(mark.y) }, svg);
    element("text", { x: box.left + 4, y: atY(mark.y) - 4 }, svg, mark.label);
  }
  wanted.series.forEach((one, order) => {
    let path = "";
    let pen = false;
    for (let i = 0; i < one.y.length; i++) {
      const shown = Number.isFinite(one.y[i]) && !(wanted.logY && one.y[i] <= 0);
      if (shown) {
        const y = atY(one.y[i]).toFixed(1);
        if (one.steps) path += `${pen ? "L" : "M"}${atX(one.x[i]).toFixed(1)},${y}H${atX(one.x[i + 1]).toFixed(1)}`;
        else path += `${pen ? "L" : "M"}${atX(one.x[i]).toFixed(1)},${y}`;
      }
      pen = shown;
    }
    element("path", { class: one.name, d: path }, svg);
    element("text", { class: one.name, x: box.right - 4, y: box.top + 14 + 15 * order, "text-anchor": "end" }, svg, one.name);
  });
  readOut(svg, box, wanted, (px) => xs[0] + ((px - box.left) / (box.right - box.left)) * (xs[1] - xs[0]), atX, width);
}

// A hair line that follows the pointer, with the values under it.
function readOut(svg, box, wanted, valueAt, atX, width) {
  const hair = element("line", { class: "grid", y1: box.top, y2: box.bottom, visibility: "hidden" }, svg);
  const said = element("text", { x: box.left + 4, y: box.top + 12, visibility: "hidden" }, svg);
  svg.addEventListener("pointerleave", () => [hair, said].forEach((e) => e.setAttribute("visibility", "hidden")));
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const x = valueAt(((event.clientX - frame.left) / frame.width) * width);
    const parts = wanted.series.map((one) => {
      let best = 0;
      for (let i = 0; i < one.y.length; i++) {
        const middle = one.steps ? (one.x[i] + one.x[i + 1]) / 2 : one.x[i];
        const former = one.steps ? (one.x[best] + one.x[best + 1]) / 2 : one.x[best];
        if (Math.abs(middle - x) < Math.abs(former - x)) best = i;
      }
      return { x: one.x[best], y: one.y[best], name: one.name };
    });
    if (!parts.length) return;
    for (const key of ["x1", "x2"]) hair.setAttribute(key, atX(parts[0].x));
    said.textContent = `${number(parts[0].x)}: ` + parts.map((p) => `${p.name} ${Number.isFinite(p.y) ? number(p.y) : "none"}`).join(", ");
    [hair, said].forEach((e) => e.setAttribute("visibility", "visible"));
  });
}

// Mean intensities along a line, `thick` px wide, one sample a pixel; bilinear; {at: px from the start, values}.
function alongLine(image, line, thick) {
  const dx = line.x1 - line.x0, dy = line.y1 - line.y0;
  const length = Math.hypot(dx, dy) || 1;
  const count = Math.max(2, Math.round(length) + 1);
  const at = [], values = [];
  for (let i = 0; i < count; i++) {
    const share = i / (count - 1);
    let sum = 0, seen = 0;
    for (let k = 0; k < thick; k++) {
      const aside = k - (thick - 1) / 2;
      const value = bilinear(image, line.x0 + share * dx - (aside * dy) / length, line.y0 + share * dy + (aside * dx) / length);
      if (value === value) {
        sum += value;
        seen += 1;
      }
    }
    at.push(share);
    values.push(seen ? sum / seen : NaN);
  }
  return { at, values };
}

function bilinear(image, x, y) {
  const { width, height, values } = image;
  if (x < -0.5 || y < -0.5 || x > width - 0.5 || y > height - 0.5) return NaN;
  const cx = Math.min(Math.max(x, 0), width - 1), cy = Math.min(Math.max(y, 0), height - 1);
  const left = Math.min(Math.floor(cx), Math.max(width - 2, 0)), top = Math.min(Math.floor(cy), Math.max(height - 2, 0));
  const right = Math.min(left + 1, width - 1), below = Math.min(top + 1, height - 1);
  const fx = cx - left, fy = cy - top;
  const upper = fx ? values[top * width + left] * (1 - fx) + values[top * width + right] * fx : values[top * width + left];
  if (!fy) return upper;
  const lower = fx ? values[below * width + left] * (1 - fx) + values[below * width + right] * fx : values[below * width + left];
  return upper * (1 - fy) + lower * fy;
}
