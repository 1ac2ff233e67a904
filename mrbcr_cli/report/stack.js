// Stacks: sections through a block of voxels, and maximum projections.

const FACES = { xy: ["x", "y"], yz: ["z", "y"], xz: ["x", "z"] };

// Lay three pictures of a block out to scale: xy, beside it yz, below it xz. Returns the stage of each.
function layFaces(where, sizes, zStretch) {
  where.replaceChildren();
  const deep = sizes.z * zStretch;
  where.style.gridTemplateColumns = `minmax(0, ${sizes.x}fr) minmax(0, ${deep}fr)`;
  const found = {};
  for (const [name, aspect] of [["xy", sizes.x / sizes.y], ["yz", deep / sizes.y], ["xz", sizes.x / deep]]) {
    const stage = document.createElement("div");
    stage.className = "stage";
    stage.style.aspectRatio = String(aspect);
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${name} section`);
    const tag = document.createElement("b");
    tag.textContent = name.toUpperCase();
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.hidden = true;
    stage.append(canvas, tag);
    if (name === "xy") stage.append(bar);
    where.appendChild(stage);
    found[name] = stage;
  }
  return found;
}

// How far a z step is stretched against a pixel for the screen: true to scale where that leaves something to see.
function stretchOf(sizes, pixelPerCell) {
  const known = Boolean(data.step_um && pixelX);
  const exact = known ? data.step_um / (pixelX * pixelPerCell) : 1;
  const least = (0.12 * sizes.x) / sizes.z;
  const used = Math.min(Math.max(exact, least), (1.2 * sizes.x) / sizes.z);
  const said = !known ? "z step or pixel size unknown, so z is not to scale" : Math.abs(used / exact - 1) > 0.01 ? `z is drawn ${number(used / exact)} times its true size` : "z is to scale";
  return { used, said };
}

async function showStack() {
  const { stack } = state.view;
  $("stack").hidden = !stack;
  if (!stack) return;
  await showVolume(stack.volume);
  const { projections, volume } = stack;
  if (projections.why && !volume.why) showBlockProjections(volume, projections.why);
  else await showProjections(projections);
}

async function showVolume(volume) {
  $("ortho").hidden = $("cross").hidden = Boolean(volume.why);
  if (volume.why) {
    $("volume-said").textContent = `Sections are not shown: ${volume.why}.`;
    return;
  }
  await Promise.all(SIDES.map((side) => decode(volume[side])));
  const [first, depth, top, left, height, width] = volume.place;
  const sizes = { x: width, y: height, z: depth };
  const stretch = stretchOf(sizes, 1);
  $("volume-said").textContent =
    (volume.whole ? "The whole stack in full resolution" : `Full resolution around detail 1: x ${left} to ${left + width}, y ${top} to ${top + height}, z ${first} to ${first + depth}`) +
    `; ${stretch.said}. Drag the cross-hair in any section.`;
  const stages = [...$("ortho").querySelectorAll(".ortho")].map((where) => layFaces(where, sizes, stretch.used));
  if (!state.cross) state.cross = brightest(volume.after, sizes, Math.min(Math.max(state.view.z - first, 0), depth - 1));
  stages.forEach((faces) => {
    for (const [name, [across, down]] of Object.entries(FACES)) {
      for (const kind of ["v", "h"]) {
        const line = document.createElement("i");
        line.className = kind;
        faces[name].appendChild(line);
      }
      dragging(faces[name], (fx, fy) => {
        setCross(across, fx * sizes[across]);
        setCross(down, fy * sizes[down]);
        drawSections(volume, stages, sizes);
      });
    }
    scaleBar(faces.xy, pixelX ? width * pixelX : null);
  });
  const setCross = (axis, at) => (state.cross[axis] = Math.min(Math.max(Math.floor(at), 0), sizes[axis] - 1));
  for (const axis of ["x", "y", "z"]) {
    const input = $(`cross-${axis}`);
    input.max = sizes[axis] - 1;
    input.oninput = () => {
      setCross(axis, Number(input.value));
      drawSections(volume, stages, sizes);
    };
  }
  drawSections(volume, stages, sizes);
}

function brightest(encoded, sizes, z) {
  let best = -Infinity, found = { x: sizes.x >> 1, y: sizes.y >> 1, z };
  for (let y = 0; y < sizes.y; y++) {
    for (let x = 0; x < sizes.x; x++) {
      const value = encoded.values[(z * sizes.y + y) * sizes.x + x];
      if (value > best) [best, found] = [value, { x, y, z }];
    }
  }
  return found;
}

function section(values, sizes, name, cross) {
  const [across, down] = FACES[name];
  const width = sizes[across], height = sizes[down];
  const found = new Float32Array(width * height);
  const at = { ...cross };
  for (let j = 0; j < height; j++) {
    for (let i = 0; i < width; i++) {
      at[across] = i;
      at[down] = j;
      found[j * width + i] = values[(at.z * sizes.y + at.y) * sizes.x + at.x];
    }
  }
  return { values: found, width, height };
}

function drawSections(volume, stages, sizes) {
  const cross = state.cross;
  stages.forEach((faces, k) => {
    for (const [name, [across, down]] of Object.entries(FACES)) {
      paint(faces[name].querySelector("canvas"), section(volume[SIDES[k]].values, sizes, name, cross), look(SIDES[k]));
      faces[name].querySelector(".v").style.left = `${(100 * (cross[across] + 0.5)) / sizes[across]}%`;
      faces[name].querySelector(".h").style.top = `${(100 * (cross[down] + 0.5)) / sizes[down]}%`;
    }
  });
  const [first, , top, left] = volume.place;
  const value = (side) => number(volume[side].values[(cross.z * sizes.y + cross.y) * sizes.x + cross.x]);
  for (const axis of ["x", "y", "z"]) $(`cross-${axis}`).value = cross[axis];
  $("cross-said").textContent = `x ${cross.x + left}, y ${cross.y + top}, z ${cross.z + first}: before ${value("before")}, after ${value("after")}`;
}

async function showProjections(found) {
  $("projections").hidden = Boolean(found.why);
  if (found.why) {
    $("projection-said").textContent = `Projections of the whole stack are not shown: ${found.why}.`;
    return;
  }
  for (const side of SIDES) await Promise.all(Object.values(found[side]).map(decode));
  const shape = found.before.xy.shape;
  const sizes = { x: WIDTH, y: HEIGHT, z: found.of };
  const stretch = stretchOf(sizes, 1);
  const planes = found.planes < found.of ? `${found.planes} of the ${found.of} planes, evenly spread` : `all ${found.of} planes`;
  const small = shape[1] < WIDTH ? ` Of planes made small (${shape[1]} × ${shape[0]} px, means of the pixels).` : "";
  $("projection-said").textContent = `The brightest along each axis, of ${planes}; ${stretch.said}.${small}`;
  [...$("projections").querySelectorAll(".ortho")].forEach((where, k) => {
    const faces = layFaces(where, sizes, stretch.used);
    for (const name of Object.keys(FACES)) paint(faces[name].querySelector("canvas"), plane(found[SIDES[k]][name]), look(SIDES[k]));
    scaleBar(faces.xy, pixelX ? WIDTH * pixelX : null);
  });
}

// The brightest along an axis of the block of the sections, where the whole stack is too much to read.
function brightestAlong(values, sizes, name) {
  const [across, down] = FACES[name];
  const width = sizes[across], height = sizes[down];
  const found = new Float32Array(width * height).fill(NaN);
  const at = {};
  for (at.z = 0; at.z < sizes.z; at.z++) {
    for (at.y = 0; at.y < sizes.y; at.y++) {
      for (at.x = 0; at.x < sizes.x; at.x++) {
        const k = at[down] * width + at[across];
        const value = values[(at.z * sizes.y + at.y) * sizes.x + at.x];
        if (!(value <= found[k])) found[k] = value === value ? value : found[k];
      }
    }
  }
  return { values: found, width, height };
}

function showBlockProjections(volume, why) {
  const [, depth, , , height, width] = volume.place;
  const sizes = { x: width, y: height, z: depth };
  const stretch = stretchOf(sizes, 1);
  $("projection-said").textContent = `The brightest along each axis of the block above; ${stretch.said}. Not of the whole stack: ${why}.`;
  $("projections").hidden = false;
  [...$("projections").querySelectorAll(".ortho")].forEach((where, k) => {
    const faces = layFaces(where, sizes, stretch.used);
    const values = volume[SIDES[k]].values;
    for (const name of Object.keys(FACES)) paint(faces[name].querySelector("canvas"), brightestAlong(values, sizes, name), look(SIDES[k]));
    scaleBar(faces.xy, pixelX ? width * pixelX : null);
  });
}
