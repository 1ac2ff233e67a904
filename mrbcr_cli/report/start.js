// Set the controls up and show the first view; last of the scripts, which are one.

async function show() {
  const c = Number($("channel").value), t = Number($("time").value);
  const next = data.views.find((view) => view.c === c && view.t === t);
  if (next !== state.view) {
    const samePlace = state.view && state.view.c === next.c;
    state.view = next;
    if (state.picture === null) state.picture = 2 * next.overview.after.shape[1] <= WIDTH ? 1 : 0; // small shows no blur
    state.picture = Math.min(state.picture, next.details.length);
    state.cross = samePlace ? state.cross : null;
    makeTabs();
    await startLine();
  }
  sayScale();
  await showPicture();
  drawLine();
  measures();
  await showResidual();
  await showStack();
  document.body.dataset.shown = `${c},${t}`;
}

function fail(error) {
  $("broken").hidden = false;
  $("broken").textContent = `The pictures cannot be drawn in this browser (${error && error.message ? error.message : error}); a recent Firefox, Chrome, Edge or Safari can.`;
}

function option(select, value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  select.appendChild(made);
}

function begin() {
  for (const [index, name] of Object.entries(data.channels)) option($("channel"), index, name);
  const unit = { second: "s", minute: "min", hour: "h", millisecond: "ms" }[data.time_unit] || data.time_unit;
  for (const t of data.times) option($("time"), t, data.time_step && unit ? `${t} (${number(t * data.time_step)} ${unit})` : String(t));
  for (const name of Object.keys(data.maps)) if (name !== data.difference) option($("map"), name, name === "gray" ? "grey" : name);
  $("map").value = "gray";
  $("pick-channel").hidden = Object.keys(data.channels).length < 2;
  $("pick-time").hidden = data.times.length < 2;
  const again = () => show().catch(fail);
  for (const id of ["channel", "time", "map", "own"]) $(id).addEventListener("change", again);
  for (const id of ["black", "white", "gamma"]) $(id).addEventListener("input", again);
  $("slider").addEventListener("input", () => slide(Number($("slider").value)));
  dragging($("stage"), (fx) => slide(100 * fx));
  for (const side of SIDES) dragging($(`line-${side}`).parentElement, moveLine);
  for (const id of ["x0", "y0", "x1", "y1"]) {
    $(id).addEventListener("change", () => {
      const [top, left, height, width] = detailOf().place;
      const start = id[0] === "x" ? left : top, size = id[0] === "x" ? width : height;
      state.line[id] = Math.min(Math.max(Math.round(Number($(id).value)) - start, 0), size - 1);
      drawLine();
    });
  }
  $("thick").addEventListener("input", drawLine);
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  let waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(again, 120);
  });
  slide(50);
  again();
}

begin();
