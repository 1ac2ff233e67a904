// A page that draws an OME-Zarr with Viv, one image pixel a screen pixel: page.html?url=URL&size=WIDTH,HEIGHT&z=Z
import { Deck, OrthographicView } from "@deck.gl/core";
import { ColorPaletteExtension } from "@vivjs/extensions";
import { MultiscaleImageLayer } from "@vivjs/layers";
import { loadOmeZarr } from "@vivjs/loaders";

const query = new URLSearchParams(location.search);
const [width, height] = query.get("size").split(",").map(Number);

const { data, metadata } = await loadOmeZarr(query.get("url"), { type: "multiscales" });
const channels = metadata.omero.channels;
const layer = new MultiscaleImageLayer({
  id: "image",
  loader: data,
  selections: channels.map((_, c) => ({ c, z: Number(query.get("z")) })),
  channelsVisible: channels.map(() => true),
  contrastLimits: channels.map(({ window }) => [window.start, window.end]),
  colors: channels.map(({ color }) => [0, 2, 4].map((i) => parseInt(color.slice(i, i + 2), 16))),
  extensions: [new ColorPaletteExtension()],
  onViewportLoad: () => setTimeout(() => (document.title = "drawn"), 300),
});
new Deck({
  parent: document.getElementById("view"),
  width,
  height,
  views: new OrthographicView({ id: "view" }),
  initialViewState: { target: [width / 2, height / 2, 0], zoom: 0 },
  layers: [layer],
  onError: (error) => (document.title = `failed: ${error.message}`),
});
