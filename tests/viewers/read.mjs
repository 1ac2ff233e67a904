// Opens an OME-Zarr at a URL and prints what it found as JSON: node read.mjs zarrita|ome-zarr.js URL
import { createHash } from "node:crypto";

const [library, url] = process.argv.slice(2);

const checksum = (data) =>
  createHash("sha256").update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)).digest("hex");

async function withZarrita() {
  const zarr = await import("zarrita");
  const group = await zarr.open(new zarr.FetchStore(url), { kind: "group" });
  const ome = group.attrs.ome ?? group.attrs; // 0.5, or 0.4
  const levels = [];
  for (const { path } of ome.multiscales[0].datasets) {
    const array = await zarr.open(group.resolve(path), { kind: "array" });
    const { data } = await zarr.get(array);
    levels.push({ shape: array.shape, dtype: array.dtype, sha256: checksum(data) });
  }
  return { axes: ome.multiscales[0].axes.map((a) => a.name), channels: ome.omero.channels.map((c) => c.label), levels };
}

async function withOmeZarrJs() {
  const omezarr = await import("ome-zarr.js");
  const { arr, multiscale, omero, scales } = await omezarr.getMultiscaleWithArray(url, 0);
  const { data } = await arr.getChunk(arr.shape.map(() => 0)); // its render() needs a browser: not under Node
  return {
    axes: multiscale.axes.map((a) => a.name),
    channels: omero.channels.map((c) => c.label),
    shape: arr.shape,
    scales,
    chunk: { shape: arr.chunks, sha256: checksum(data) },
  };
}

const found = await (library === "zarrita" ? withZarrita() : withOmeZarrJs());
console.log(JSON.stringify(found));
