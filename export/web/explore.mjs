/** The explorer: sliders for latents and attributes, samples to pick from and to morph between, pictures to start from.
 *
 * What is shown is one latent vector: that of the picked sample or picture, or one on the way between two, with the
 * sliders' directions added. Samples are noise, of which the prior makes latents: between two of them the way leads
 * through noise, where each place is as likely a sample as they are. All of it is in the address.
 *
 * Of a conditional model the readers choose a class or attributes too. What was picked keeps its latents then, and is
 * decoded as those; the samples to pick from are drawn anew, of the same noise.
 */

import { at, complain, paint, say, startRuntime } from "./browser.mjs";
import { chosen, menusOf, offer } from "./conditions.mjs";
import { Decoder, DecoderError, Prior } from "./decoder.mjs";
import { Encoder, pixelsOf } from "./encoder.mjs";

const RUNTIME = new URL("./ort/", import.meta.url);
const SAMPLES = 16;
const LATENT_RANGE = 3;
const ATTRIBUTE_RANGE = 2;

/**
 * What is on the page. `first` and `second`, what was picked, are {z, noise, condition}: latents and, of samples, the
 * noise and the condition that they were made of, else null; `grid` is the same of all samples, the former two in one
 * list each. `settings` has the sliders' values, by their names.
 */
export const state = {
  prior: null, decoder: null, encoder: null, about: null, seed: 0, grid: null, first: null, second: null, settings: {},
};

// ---------------------------------------------------------------- latents

/** The latents of what is shown. */
export async function latents() {
  const z = Float32Array.from(await picked());
  for (const [name, direction] of directions()) {
    const strength = state.settings[name] ?? 0;
    if (strength) direction.forEach((value, index) => (z[index] += strength * value));
  }
  return z;
}

/** The latents of what was picked, or of a place on the way from the first to the second. */
function picked() {
  const { prior, first, second } = state;
  const way = Number(at("way").value);
  if (!second || way === 0) return first.z;
  if (way === 1) return second.z;
  const alike = String(first.condition) === String(second.condition);
  if (first.noise && second.noise && alike) {
    return prior.latents(between(first.noise, second.noise, way), first.condition);
  }
  return between(first.z, second.z, way);
}

/** What is chosen for pictures to be of, as the decoder and the prior take it. */
const asked = () => chosen(at("condition"), state.decoder.condition);

/** Along the arc between two vectors, their lengths in between too. */
export function between(one, other, way) {
  const length = (z) => Math.hypot(...z);
  const [first, second] = [length(one), length(other)];
  const cosine = one.reduce((sum, value, index) => sum + value * other[index], 0) / (first * second);
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  if (!(angle > 1e-6 && angle < Math.PI - 1e-6)) return one.map((value, index) => (1 - way) * value + way * other[index]);
  const now = (1 - way) * first + way * second;
  const [a, b] = [Math.sin((1 - way) * angle) / first, Math.sin(way * angle) / second];
  return one.map((value, index) => (now * (a * value + b * other[index])) / Math.sin(angle));
}

function* directions() {
  for (const { name, direction } of state.about.latents) yield [name, direction];
  for (const { name, vector } of state.about.attributes) yield [name, vector];
}

// ---------------------------------------------------------------- what the page does

let wanted = false;
let working = null;

/** Shows what is set; while one picture is computed, of all that are asked for only the last is next. */
export function show() {
  wanted = true;
  working ??= (async () => {
    try {
      while (wanted) {
        wanted = false;
        const begin = performance.now();
        paint(at("large"), await state.decoder.decode(await latents(), asked()));
        say(`${(performance.now() - begin).toFixed(0)} ms`);
      }
      remember();
    } finally {
      working = null;
    }
  })();
  return working;
}

/** Draws samples of a seed to pick from. */
export async function draw(seed) {
  const noise = state.prior.draw(SAMPLES, seed);
  const condition = asked();
  const z = await state.prior.latents(noise, condition);
  const images = await state.decoder.decode(z, condition);
  Object.assign(state, { seed, grid: { z, noise, condition } });
  const canvases = at("grid").children.length ? at("grid").querySelectorAll("canvas") : emptyGrid();
  canvases.forEach((canvas, index) => paint(canvas, images, index));
  press(null);
}

/** Starts from {z, noise, condition}: a sample, or a picture, which has its latents alone. */
export function start(point, index = null) {
  if (at("morphing").getAttribute("aria-pressed") === "true" && state.first) {
    state.second = point;
    at("way").value = 1;
    at("morph").hidden = false;
  } else {
    state.first = point;
    state.second = null;
    at("morph").hidden = true;
  }
  shown(at("way"));
  press(index);
  return show();
}

/** Starts from a picture. */
export async function startFrom(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch (error) {
    throw new DecoderError(`${file.name ?? "the file"} is not a picture that this browser can read`, { cause: error });
  }
  const z = await state.encoder.encode(pixelsOf(picture, state.encoder.imageShape));
  return start({ z, noise: null, condition: null });
}

/** One of the samples, as {z, noise, condition}. */
export function sample(index) {
  const { latentDim } = state.prior;
  const row = (values) => values.slice(index * latentDim, (index + 1) * latentDim);
  return { z: row(state.grid.z), noise: row(state.grid.noise), condition: state.grid.condition };
}

// ---------------------------------------------------------------- the address

const pack = (values) => btoa(String.fromCharCode(...new Uint8Array(Float32Array.from(values).buffer)));

function unpack(text, length) {
  try {
    const values = new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
    return values.length === length && values.every(Number.isFinite) ? values : null;
  } catch {
    return null; // not what this page wrote
  }
}

/** Where the address keeps what was picked: noise and condition, of which latents are made again, or latents. */
const KEPT = {
  first: { noise: "noise", condition: "of", z: "z" },
  second: { noise: "to-noise", condition: "to-of", z: "to" },
};

function remember() {
  const entries = new URLSearchParams({ seed: state.seed });
  for (const [place, names] of Object.entries(KEPT)) {
    const point = state[place];
    if (point?.noise) entries.set(names.noise, pack(point.noise));
    else if (point) entries.set(names.z, pack(point.z));
    if (point?.condition) entries.set(names.condition, pack(point.condition));
  }
  if (state.second) entries.set("way", at("way").value);
  for (const [name, value] of Object.entries(state.settings)) if (value) entries.set(`s.${name}`, value);
  for (const { name, value } of menusOf(at("condition"))) if (value) entries.set(`c.${name}`, value);
  history.replaceState(null, "", `#${entries}`);
}

async function recalled(entries, names) {
  const { latentDim, condition: known } = state.decoder;
  const kept = (name, length) => (entries.has(name) ? unpack(entries.get(name), length) : null);
  const [noise, z, condition] = [
    kept(names.noise, latentDim), kept(names.z, latentDim), known && kept(names.condition, known.names.length),
  ];
  if (noise) return { z: await state.prior.latents(noise, condition), noise, condition };
  return z ? { z, noise: null, condition: null } : null;
}

async function recall() {
  const entries = new URLSearchParams(location.hash.slice(1));
  const seed = Number(entries.get("seed") ?? 0);
  for (const menu of menusOf(at("condition"))) {
    menu.value = entries.get(`c.${menu.name}`) ?? "";
    if (menu.selectedIndex < 0) menu.value = "";
  }
  await draw(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32 ? seed : 0);
  for (const input of document.querySelectorAll(".sliders input")) {
    const value = Number(entries.get(`s.${input.name}`) ?? 0);
    input.value = Number.isFinite(value) ? value : 0;
    set(input);
  }
  const first = await recalled(entries, KEPT.first);
  state.first = first ?? sample(0);
  state.second = await recalled(entries, KEPT.second);
  at("way").value = state.second ? entries.get("way") : 0;
  shown(at("way"));
  at("morph").hidden = !state.second;
  if (!first) press(0);
  return show();
}

// ---------------------------------------------------------------- how

async function load(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new DecoderError(`no ${name} beside the page: write it with keras-vae explore`);
  return answer.json();
}

async function begin() {
  const about = await load("explorer.json");
  const ort = await startRuntime(RUNTIME);
  [state.prior, state.decoder] = [await Prior.load(ort, "prior.onnx"), await Decoder.load(ort, "decoder.onnx")];
  state.about = about;
  offer(at("condition"), state.decoder.condition);
  document.title = about.name;
  at("name").textContent = about.name;
  fill("attributes", about.attributes, ATTRIBUTE_RANGE);
  fill("latents", about.latents, LATENT_RANGE);
  await recall();
  if (about.encoder) {
    state.encoder = await Encoder.load(ort, "encoder.onnx");
    at("upload").hidden = false;
  }
}

function fill(id, entries, range) {
  at(id).hidden = !entries.length;
  const labels = entries.map(({ name, label }) => {
    const slider = document.createElement("label");
    const text = Object.assign(document.createElement("span"), { textContent: label ?? name });
    const input = Object.assign(document.createElement("input"), { type: "range", name, min: -range, max: range, step: 0.05, value: 0 });
    slider.append(text, document.createElement("output"), input);
    return slider;
  });
  at(id).querySelector(".sliders").replaceChildren(...labels);
}

function set(input) {
  state.settings[input.name] = Number(input.value);
  shown(input);
}

function shown(input) {
  input.parentElement.querySelector("output").textContent = Number(input.value).toFixed(2).replace(/\.?0+$/, "");
}

function emptyGrid() {
  const items = Array.from({ length: SAMPLES }, (_, index) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.dataset.index = index;
    button.setAttribute("aria-label", `Sample ${index + 1}`);
    button.append(document.createElement("canvas"));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  at("grid").replaceChildren(...items);
  return at("grid").querySelectorAll("canvas");
}

function press(index) {
  for (const button of at("grid").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(index !== null && Number(button.dataset.index) === index));
  }
}

function fail(error) {
  complain(error);
  say("");
}

const doing = (work) => async (event) => {
  at("error").hidden = true;
  try {
    await work(event);
  } catch (error) {
    fail(error);
  }
};

// ---------------------------------------------------------------- what the reader does

document.addEventListener(
  "input",
  doing(({ target }) => {
    if (target.type !== "range") return undefined;
    if (target.id === "way") shown(target);
    else set(target);
    return show();
  }),
);
at("grid").addEventListener(
  "click",
  doing(({ target }) => {
    const button = target.closest("button");
    return button && start(sample(Number(button.dataset.index)), Number(button.dataset.index));
  }),
);
at("condition").addEventListener("change", doing(() => show().then(() => draw(state.seed))));
at("new").addEventListener("click", doing(() => draw(Math.floor(Math.random() * 1_000_000)).then(remember)));
at("morphing").addEventListener("click", ({ target }) => {
  const on = target.getAttribute("aria-pressed") !== "true";
  target.setAttribute("aria-pressed", String(on));
  say(on ? "Pick what to morph to." : "");
});
at("reset").addEventListener(
  "click",
  doing(() => {
    for (const input of document.querySelectorAll(".sliders input")) {
      input.value = 0;
      set(input);
    }
    return show();
  }),
);
at("file").addEventListener(
  "change",
  doing(() => {
    const [file] = at("file").files;
    at("file").value = "";
    return file && startFrom(file);
  }),
);
at("save").addEventListener("click", () => {
  at("large").toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "picture.png" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
});
at("share").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    say("Address copied.");
  } catch {
    say("Copy the address from the address bar."); // pages that are neither local nor https may not write the clipboard
  }
});
addEventListener("hashchange", doing(recall));

/** Settles when the first picture is shown, or a message says why not. */
export const ready = begin().catch(fail);
