/** The page: a generator, a grid of its samples, and one image large. A decoder does too, whose latents are drawn. */

import { at, complain, paint, say, startRuntime, takeDrops } from "./browser.mjs";
import { chosen, offer } from "./conditions.mjs";
import { DecoderError, load } from "./decoder.mjs";

const BATCH = 8; // images computed between two repaints of the page

/** What is on the page: the model and what to call it, the grid's seed and drawn rows, the large image's row. */
export const state = { model: null, name: "", seed: 0, grid: null, row: null };

// ---------------------------------------------------------------- what the page does

/** Loads a model from an address or a file, and draws samples of it; the one before it stays if that fails. */
export function open(source) {
  return attempt("model", async (stale) => {
    const name = source.name ?? String(source);
    say(`Loading ${name} …`);
    const begin = performance.now();
    let ort, model;
    try {
      ort = await startRuntime();
      model = await load(ort, source);
    } catch (error) {
      say(state.model ? `Still showing ${state.name}.` : "No model: choose or drop an .onnx file.");
      throw error;
    }
    if (stale()) return model.release();
    tell({
      Model: name,
      Latents: model.latentDim,
      Images: model.imageShape.join(" × "),
      "Loaded in": `${Math.round(performance.now() - begin)} ms`,
      Threads: ort.env.wasm.numThreads,
    });
    const former = state.model;
    Object.assign(state, { model, name });
    offer(at("condition"), model.condition);
    at("copy").textContent = `Copy ${takes()}`;
    at("row").setAttribute("aria-label", takes());
    return Promise.all([draw(), former?.release()]);
  });
}

/** Draws the samples of the seed and count on the page, of the class or attributes chosen, and shows one of them. */
export function draw(shown = 0) {
  return attempt("grid", async (stale) => {
    const { model } = state;
    if (!model) return;
    const problem = at("seed").validationMessage; // in the reader's language
    if (problem) throw new DecoderError(`Seed: ${problem}`);
    const seed = at("seed").valueAsNumber;
    const count = Number(at("count").value);
    const grid = model.draw(count, seed);
    Object.assign(state, { seed, grid });
    const canvases = emptyGrid(count, model.imageShape);
    at("view").hidden = false;
    const condition = asked();
    await choose(Math.min(shown, count - 1));

    let done = 0;
    let spent = 0;
    let mark = performance.now();
    for await (const images of model.batches(grid, BATCH, condition)) {
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

/** Shows the image of a row of the model's input large, and the row as text; of several calls the last one counts. */
export function show(row, title) {
  return attempt("large", async (stale) => {
    const images = await state.model.run(row, asked());
    if (stale()) return;
    paint(at("large"), images);
    at("title").textContent = title;
    // Nine digits are what a float32 is restored from.
    at("row").value = `[${Array.from(row, (value) => Number(value.toPrecision(9))).join(", ")}]`;
    state.row = row;
  });
}

/** What the model takes, in words. */
const takes = () => (state.model.input === "z" ? "latents" : "noise");

/** What the images are to be of, as the model takes it. */
const asked = () => chosen(at("condition"), state.model.condition);

/** Shows one sample of the grid. */
function choose(index) {
  const { model, grid, seed } = state;
  for (const button of at("grid").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
  }
  const row = grid.slice(index * model.latentDim, (index + 1) * model.latentDim);
  return show(row, `Sample ${index + 1} of seed ${seed}`);
}

async function copyRow() {
  try {
    await navigator.clipboard.writeText(at("row").value);
    say(`Copied the ${takes()} of this image.`);
  } catch {
    at("row").select(); // pages that are neither local nor https may not write the clipboard
    say(`Selected the ${takes()} of this image: copy with the keyboard.`);
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

// ---------------------------------------------------------------- what the reader does

function drawAnew(shown = 0) {
  at("error").hidden = true;
  draw(shown);
}

function openAnew(source) {
  at("error").hidden = true;
  open(source);
}

at("draws").addEventListener("submit", (event) => {
  event.preventDefault();
  drawAnew();
});
at("seed").addEventListener("change", () => drawAnew());
at("count").addEventListener("change", () => drawAnew());
at("condition").addEventListener("change", () => {
  drawAnew(Number(at("grid").querySelector("[aria-pressed='true']")?.dataset.index ?? 0));
});
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
at("copy").addEventListener("click", copyRow);
at("save").addEventListener("click", savePNG);

at("file").addEventListener("change", () => {
  if (at("file").files.length) openAnew(at("file").files[0]);
  at("file").value = ""; // so that the same file, mended, can be chosen again
});
takeDrops(([file]) => openAnew(file), "an .onnx file");

/** Settles when the model that the page starts with is drawn, or a message says why not. */
export const ready = open(new URLSearchParams(location.search).get("model") ?? "generator.onnx");
