/** The page of a scorer: how unusual pictures are and where it shows, the most unusual first. */

import { at, complain, paint, say, startRuntime, takeDrops } from "./browser.mjs";
import { DecoderError } from "./decoder.mjs";
import { pixelsOf } from "./encoder.mjs";
import { Scorer } from "./scorer.mjs";

/** The scorer and its name, and what it found of each picture: {name, score, rank, item}, the most unusual first. */
export const state = { scorer: null, name: "", found: [] };

// ---------------------------------------------------------------- what the page does

/** Loads a scorer from an address or a file, and forgets the pictures of the one before; that stays if this fails. */
export async function open(source) {
  const name = source.name ?? String(source);
  say(`Loading ${name} …`);
  try {
    const former = state.scorer;
    state.scorer = await Scorer.load(await startRuntime(), source);
    state.name = name;
    await former?.release();
  } catch (error) {
    say(state.scorer ? `Still scoring with ${state.name}.` : "No scorer: choose or drop a scorer.onnx.");
    throw error;
  }
  clear();
}

/** Scores pictures, one after another; of those that cannot be read it says so in the end. */
export async function add(files) {
  if (!state.scorer) throw new DecoderError("there is no scorer yet: choose or drop a scorer.onnx first");
  const unread = [];
  for (const [index, file] of [...files].entries()) {
    say(`Scoring picture ${index + 1} of ${files.length} …`);
    const picture = await createImageBitmap(file).catch(() => null);
    if (picture) await judge(file.name ?? "picture", picture);
    else unread.push(file.name ?? `file ${index + 1}`);
  }
  tell();
  if (unread.length) throw new DecoderError(`not pictures that this browser can read: ${unread.join(", ")}`);
}

async function judge(name, picture) {
  const { scorer } = state;
  const dims = scorer.imageShape;
  const pixels = pixelsOf(picture, dims);
  const { score, rank, errorMap, reconstruction } = await scorer.score(pixels);
  if (scorer !== state.scorer) return; // another was opened meanwhile
  const item = document.createElement("li");
  item.append(
    figure("picture", { data: pixels, dims }),
    figure("reconstruction", { data: reconstruction, dims }),
    figure("where they differ", { data: heat(pixels, errorMap, dims), dims: [...dims.slice(0, 2), 3] }),
    words(name, score, rank),
  );
  const entry = { name, score, rank, item };
  const place = state.found.findIndex((other) => other.score < score);
  state.found.splice(place < 0 ? state.found.length : place, 0, entry);
  at("found").insertBefore(item, at("found").children[place] ?? null);
  flag();
}

/** Forgets all pictures. */
export function clear() {
  state.found = [];
  at("found").replaceChildren();
  tell();
}

/** Marks the pictures whose rank is as high as that on the page, or higher. */
function flag() {
  const from = at("from").valueAsNumber;
  for (const { rank, item } of state.found) item.classList.toggle("flagged", rank >= from);
}

/** Error maps in colour over the grey picture, up to their maximum: float32, height * width * 3. */
export function heat(pixels, errorMap, [height, width, channels]) {
  const most = errorMap.reduce((one, other) => Math.max(one, other), 1e-12);
  const colours = new Float32Array(height * width * 3);
  errorMap.forEach((error, place) => {
    const share = error / most;
    const start = place * channels;
    const grey = channels === 3 ? (pixels[start] + pixels[start + 1] + pixels[start + 2]) / 3 : pixels[start];
    for (let channel = 0; channel < 3; channel++) {
      const hot = Math.min(1, Math.max(0, 3 * share - channel)); // black, red, yellow, white
      colours[3 * place + channel] = (1 - share) * 0.6 * grey + (0.4 + 0.6 * share) * hot;
    }
  });
  return colours;
}

// ---------------------------------------------------------------- how

function figure(caption, images) {
  const found = document.createElement("figure");
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption);
  paint(canvas, images);
  found.append(canvas, Object.assign(document.createElement("figcaption"), { textContent: caption }));
  return found;
}

function words(name, score, rank) {
  const found = document.createElement("div");
  const text = (content, className) => Object.assign(document.createElement("p"), { textContent: content, className });
  const share = (100 * rank).toFixed(rank > 0.99 ? 2 : 1);
  found.append(
    Object.assign(document.createElement("h2"), { textContent: name }),
    text(`More unusual than ${share} % of usual pictures`, "rank"),
    text(`score ${score.toPrecision(4)}`, "score"),
  );
  return found;
}

function tell() {
  const { found, name } = state;
  say(found.length ? `${found.length} scored with ${name}, the most unusual first.` : `${name}: choose or drop pictures.`);
}

/** What was given is taken one after another, and errors are shown. */
let turn;
function take(files) {
  turn = turn.then(async () => {
    at("error").hidden = true;
    const isModel = (file) => file.name?.endsWith(".onnx");
    const pictures = files.filter((file) => !isModel(file));
    try {
      for (const file of files.filter(isModel)) await open(file);
      if (pictures.length) await add(pictures);
    } catch (error) {
      complain(error);
    }
  });
  return turn;
}

// ---------------------------------------------------------------- what the reader does

at("flags").addEventListener("submit", (event) => event.preventDefault());
at("from").addEventListener("input", flag);
at("clear").addEventListener("click", clear);
at("file").addEventListener("change", () => {
  const files = [...at("file").files];
  at("file").value = ""; // so that the same files can be chosen again
  take(files);
});
takeDrops(take, "pictures, or a scorer.onnx");

/** Settles when the scorer that the page starts with is loaded, or a message says why not. */
export const ready = open(new URLSearchParams(location.search).get("model") ?? "scorer.onnx").catch(complain);
turn = ready; // pictures wait for it
