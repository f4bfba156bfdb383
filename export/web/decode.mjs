#!/usr/bin/env node
/** Makes images with an exported generator or decoder: of samples' noise, or of latents. */

import { access, constants, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { text } from "node:stream/consumers";
import { parseArgs } from "node:util";

import { DecoderError, load, toRGBA } from "./decoder.mjs";

const USAGE = `usage: node decode.mjs MODEL.onnx --seed N [--count N] [--condition WHAT] OUT
       node decode.mjs MODEL.onnx ROWS.json [--condition WHAT] OUT

MODEL.onnx  a generator, for samples, or a decoder, for latents
--seed      draws standard normal numbers, the same for the same seed (a whole number, not numpy's generator): noise
            for a generator; for a decoder latents, which are samples where the model's prior is the standard normal
--count     how many (default 16)
--condition of a conditional model: the class of all images, or their attributes, as in glasses=1,hat=0; without it they
            are of any kind
ROWS.json   rows of a generator's noise or of a decoder's latents, [[0.1, ...], ...]; - reads them from standard input
OUT         .ppm: a picture, all images in a grid; .f32: float32 in [0, 1], little-endian, [n, height, width, channels]

exit status: 0 done, 2 wrong use or bad input, 1 anything else`;

const MAX_VALUES = 2 ** 29; // 2 GiB of float32

class UsageError extends Error {}

function parse(argv) {
  const strings = { seed: { type: "string" }, count: { type: "string" }, condition: { type: "string" } };
  const options = { ...strings, help: { type: "boolean", short: "h" } };
  let values, positionals;
  try {
    ({ values, positionals } = parseArgs({ args: argv, options, allowPositionals: true }));
  } catch (error) {
    throw new UsageError(`${error.message.split(".")[0]}; see --help`);
  }
  if (values.help) return { help: true };
  const draws = values.seed !== undefined;
  if (!draws && values.count !== undefined) throw new UsageError("--count goes with --seed: give both");
  if (positionals.length !== (draws ? 2 : 3)) {
    const wanted = draws ? "MODEL.onnx and OUT beside --seed" : "MODEL.onnx, ROWS.json and OUT, or --seed";
    throw new UsageError(`${positionals.length} arguments where there should be ${wanted}; see --help`);
  }
  for (const name of ["seed", "count"]) {
    if (values[name] !== undefined && !/^\d+$/.test(values[name])) {
      throw new UsageError(`--${name} ${values[name]}: give a whole number`);
    }
  }
  const [file, rows, out] = draws ? [positionals[0], null, positionals[1]] : positionals;
  if (![".ppm", ".f32"].includes(path.extname(out))) throw new UsageError(`${out}: name it .ppm or .f32`);
  return { file, rows, out, seed: Number(values.seed), count: Number(values.count ?? 16), condition: values.condition };
}

/** What a text asks of a model, as it takes it: a class, or attributes with 1 or 0. */
function asked(model, text) {
  if (text === undefined) return null;
  if (!model.condition || model.condition.exclusive) return text;
  const pairs = text.split(",").map((pair) => {
    const [, name, value] = /^\s*(.+)=([01])\s*$/.exec(pair) ?? [];
    if (name) return [name, value === "1"];
    throw new UsageError(`--condition ${pair}: give a name and 1 or 0, such as ${model.condition.names[0]}=1`);
  });
  return Object.fromEntries(pairs);
}

async function readRows(file) {
  let json;
  try {
    json = file === "-" ? await text(process.stdin) : await readFile(file, "utf8");
  } catch (error) {
    throw new UsageError(`cannot read ${file}: ${error.message}`);
  }
  try {
    return JSON.parse(json);
  } catch (error) {
    throw new UsageError(`${file === "-" ? "standard input" : file} is not JSON: ${error.message}`);
  }
}

async function loadRuntime() {
  try {
    return (await import("onnxruntime-node")).default;
  } catch (error) {
    throw new Error(`onnxruntime-node does not load; npm ci --ignore-scripts installs it: ${error.message}`);
  }
}

/** Refuses a place that cannot be written to, before any work. */
async function checkTarget(out) {
  const isFolder = async (file) => (await stat(file).catch(() => null))?.isDirectory();
  const folder = path.dirname(out);
  if (!(await isFolder(folder))) throw new UsageError(`cannot write ${out}: there is no folder ${folder}`);
  if (await isFolder(out)) throw new UsageError(`cannot write ${out}: it is a folder`);
  try {
    await access(folder, constants.W_OK);
  } catch (error) {
    throw new UsageError(`cannot write ${out}: ${error.message}`);
  }
}

/** Images in rows, as many a row as there are rows, on white. */
function toPPM(images) {
  const [count, height, width] = images.dims;
  const columns = Math.ceil(Math.sqrt(count));
  const rows = Math.ceil(count / columns);
  const header = Buffer.from(`P6\n${columns * width} ${rows * height}\n255\n`);
  const pixels = Buffer.alloc(rows * height * columns * width * 3, 255);
  for (let index = 0; index < count; index++) {
    const { data: rgba } = toRGBA(images, index);
    const [top, left] = [Math.floor(index / columns) * height, (index % columns) * width];
    for (let pixel = 0; pixel < height * width; pixel++) {
      const place = (top + Math.floor(pixel / width)) * columns * width + left + (pixel % width);
      pixels.set(rgba.subarray(4 * pixel, 4 * pixel + 3), 3 * place);
    }
  }
  return Buffer.concat([header, pixels]);
}

/** The bytes of values in [0, 1], float32. */
function toFloats(data) {
  const values = data instanceof Uint8Array ? Float32Array.from(data, (level) => level / 255) : data;
  return new Uint8Array(values.buffer);
}

/** In one piece or not at all. */
async function write(out, bytes) {
  const aside = path.join(path.dirname(out), `.${path.basename(out)}.${process.pid}`);
  try {
    await writeFile(aside, bytes);
    await rename(aside, out);
  } finally {
    await rm(aside, { force: true });
  }
}

async function main() {
  const { help, file, rows, out, seed, count, condition } = parse(process.argv.slice(2));
  if (help) return console.log(USAGE);
  await checkTarget(out);
  const given = rows === null ? null : await readRows(rows);
  const model = await load(await loadRuntime(), file);

  const imageSize = model.imageShape.reduce((product, side) => product * side);
  const wanted = rows === null ? count : given?.length;
  if (wanted * imageSize > MAX_VALUES) throw new UsageError(`${wanted} images are more than 2 GiB: ask for fewer`);
  const parts = [];
  const values = rows === null ? model.draw(count, seed) : given;
  for await (const images of model.batches(values, 32, asked(model, condition))) parts.push(images.data);
  const bytes = await new Blob(parts).arrayBuffer();
  const data = model.outputType === "uint8" ? new Uint8Array(bytes) : new Float32Array(bytes);
  const images = { data, dims: [data.length / imageSize, ...model.imageShape] };

  await write(out, out.endsWith(".ppm") ? toPPM(images) : toFloats(data));
  return console.log(`${out}: ${images.dims[0]} of ${model.imageShape.join(" x ")}`);
}

try {
  await main();
} catch (error) {
  console.error(`decode.mjs: ${error.message.replace(/\s+/g, " ").trim()}`);
  process.exitCode = error instanceof UsageError || error instanceof DecoderError ? 2 : 1;
}
