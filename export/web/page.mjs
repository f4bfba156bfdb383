/** The page: a decoder, a grid of its samples, and one image large. `show` takes any latents. */

import { Decoder, DecoderError, toRGBA } from "./decoder.mjs";

// Where onnxruntime-web's two files lie: change this line where you serve them from another folder.
const RUNTIME = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url);
const START_MS = 60_000; // the runtime is a download of 14 MB
const BATCH = 8; // images computed between two repaints of the page

/** What is on the page: the decoder and what to call it, the grid's seed and latents, the large image's latents. */
export const state = { decoder: null, name: "", seed: 0, grid: null, z: null };

const at = (id) => document.getElementById(id);

// ---------------------------------------------------------------- what the page does

/** Loads a decoder from an address or a file, and draws samples of it; the one before it stays if that fails. */
export function open(source) {
  return attempt("model", async (stale) => {
    const name = source.name ?? String(source);
    say(`Loading ${name} …`);
    const begin = performance.now();
    let ort, decoder;
    try {
      ort = await startRuntime();
      decoder = await Decoder.load(ort, source);
    } catch (error) {
      say(state.decoder ? `Still showing ${state.name}.` : "No model: choose or drop an .onnx file.");
      throw error;
    }
    if (stale()) return decoder.release();
    tell({
      Model: name,
      Latents: decoder.latentDim,
      Images: decoder.imageShape.join(" × "),
      "Loaded in": `${Math.round(performance.now() - begin)} ms`,
      Threads: ort.env.wasm.numThreads,
    });
    const former = state.decoder;
    Object.assign(state, { decoder, name });
    return Promise.all([draw(), former?.release()]);
  });
}

/** Draws the samples of the seed and count on the page. */
export function draw() {
  return attempt("grid", async (stale) => {
    const { decoder } = state;
    if (!decoder) return;
    const problem = at("seed").validationMessage; // in the reader's language
    if (problem) throw new DecoderError(`Seed: ${problem}`);
    const seed = at("seed").valueAsNumber;
    const count = Number(at("count").value);
    const grid = decoder.latents(count, seed);
    Object.assign(state, { seed, grid });
    const canvases = emptyGrid(count, decoder.imageShape);
    at("view").hidden = false;
    await choose(0);

    let done = 0;
    let spent = 0;
    let mark = performance.now();
    for await (const images of decoder.batches(grid, BATCH)) {
      if (stale()) return;
      spent += performance.now() - mark;
      for (let index = 0; index < images.dims[0]; index++) paint(canvases[done++], images, index);
      await repaint();
      if (stale()) return;
      mark = performance.now();
    }
    say(`${count} images in ${Math.round(spent)} ms: ${(spent / count).toFixed(1)} ms each.`);
  });
}

/** Decodes latents and shows the image large and the latents as text; of several calls the last one counts. */
export function show(z, title) {
  return attempt("large", async (stale) => {
    const images = await state.decoder.decode(z);
    if (stale()) return;
    paint(at("large"), images);
    at("title").textContent = title;
    // Nine digits are what a float32 is restored from.
    at("latents").value = `[${Array.from(z, (value) => Number(value.toPrecision(9))).join(", ")}]`;
    state.z = z;
  });
}

/** Shows one sample of the grid. */
function choose(index) {
  const { decoder, grid, seed } = state;
  for (const button of at("grid").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
  }
  const z = grid.slice(index * decoder.latentDim, (index + 1) * decoder.latentDim);
  return show(z, `Sample ${index + 1} of seed ${seed}`);
}

async function copyLatents() {
  try {
    await navigator.clipboard.writeText(at("latents").value);
    say("Latents copied.");
  } catch {
    at("latents").select(); // pages that are neither local nor https may not write the clipboard
    say("Latents selected: copy them with the keyboard.");
  }
}

function savePNG() {
  at("large").toBlob((blob) => {
    if (!blob) return complain(new Error("the browser made no PNG of this image"));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${at("title").textContent.toLowerCase().replaceAll(" ", "-")}.png`;
    link.click();
    return setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

// ---------------------------------------------------------------- how

let runtime;

function startRuntime() {
  runtime ??= import(new URL("ort.wasm.bundle.min.mjs", RUNTIME)).then(
    (ort) => {
      ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", RUNTIME).href };
      // Threads share memory, which browsers allow to isolated pages alone.
      ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
      ort.env.wasm.initTimeout = START_MS;
      return ort;
    },
    (error) => {
      throw new Error(`onnxruntime-web is not at ${RUNTIME}: npm ci --ignore-scripts installs it`, { cause: error });
    },
  );
  return runtime;
}

const latest = {};

/** Does a piece of work and shows its error; a newer one of its kind makes it stale, and its error nobody's concern. */
async function attempt(kind, work) {
  const mine = (latest[kind] ?? 0) + 1;
  latest[kind] = mine;
  const stale = () => latest[kind] !== mine;
  try {
    await work(stale);
  } catch (error) {
    if (!stale()) complain(error);
  }
}

const repaint = () => new Promise((resolve) => setTimeout(resolve));

function paint(canvas, images, index = 0) {
  const { data, width, height } = toRGBA(images, index);
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}

function emptyGrid(count, [height, width]) {
  const canvas = () => Object.assign(document.createElement("canvas"), { width, height });
  const canvases = Array.from({ length: count }, canvas);
  const items = canvases.map((canvas, index) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.dataset.index = index;
    button.setAttribute("aria-label", `Sample ${index + 1}`);
    button.append(canvas);
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  at("grid").replaceChildren(...items);
  return canvases;
}

function tell(facts) {
  const entries = Object.entries(facts).map(([name, value]) => {
    const entry = document.createElement("div");
    entry.append(document.createElement("dt"), document.createElement("dd"));
    entry.children[0].textContent = name;
    entry.children[1].textContent = value;
    return entry;
  });
  at("facts").replaceChildren(...entries);
  at("facts").hidden = false;
}

function say(text) {
  at("status").textContent = text;
}

function complain(error) {
  at("error").textContent = error.message ?? String(error);
  at("error").hidden = false;
  if (!(error instanceof DecoderError)) console.error(error);
}

// ---------------------------------------------------------------- what the reader does

function drawAnew() {
  at("error").hidden = true;
  draw();
}

function openAnew(source) {
  at("error").hidden = true;
  open(source);
}

at("draws").addEventListener("submit", (event) => {
  event.preventDefault();
  drawAnew();
});
at("seed").addEventListener("change", drawAnew);
at("count").addEventListener("change", drawAnew);
at("new").addEventListener("click", () => {
  at("seed").value = Math.floor(Math.random() * 1_000_000);
  drawAnew();
});
at("grid").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  choose(Number(button.dataset.index));
  at("large").scrollIntoView({ block: "nearest" });
});
at("copy").addEventListener("click", copyLatents);
at("save").addEventListener("click", savePNG);

at("file").addEventListener("change", () => {
  if (at("file").files.length) openAnew(at("file").files[0]);
  at("file").value = ""; // so that the same file, mended, can be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
for (const end of ["dragleave", "drop"]) addEventListener(end, () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) openAnew(file);
  else complain(new DecoderError("what was dropped is no file: drop an .onnx file"));
});
addEventListener("error", (event) => complain(event.error ?? new Error(event.message)));
addEventListener("unhandledrejection", (event) => complain(event.reason));

/** Settles when the model that the page starts with is drawn, or a message says why not. */
export const ready = open(new URLSearchParams(location.search).get("model") ?? "decoder.onnx");
