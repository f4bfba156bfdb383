/** What the pages have in common: onnxruntime-web, painting, messages, and files that are dropped. */

import { DecoderError, toRGBA } from "./decoder.mjs";

// Where onnxruntime-web's two files lie: change this line where you serve them from another folder.
const RUNTIME = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url);
const START_MS = 60_000; // the runtime is a download of 14 MB

/** The page's element of an id. */
export const at = (id) => document.getElementById(id);

let runtime;

/** onnxruntime-web, loaded once from a folder. */
export function startRuntime(folder = RUNTIME) {
  runtime ??= import(new URL("ort.wasm.bundle.min.mjs", folder)).then(
    (ort) => {
      ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", folder).href };
      // Threads share memory, which browsers allow to isolated pages alone.
      ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
      ort.env.wasm.initTimeout = START_MS;
      return ort;
    },
    (error) => {
      throw new Error(`onnxruntime-web is not at ${folder}: npm ci --ignore-scripts installs it`, { cause: error });
    },
  );
  return runtime;
}

/** Shows one of some images, {data, dims}, in a canvas. */
export function paint(canvas, images, index = 0) {
  const { data, width, height } = toRGBA(images, index);
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}

/** Says what goes on. */
export function say(text) {
  at("status").textContent = text;
}

/** Says what went wrong. */
export function complain(error) {
  at("error").textContent = error.message ?? String(error);
  at("error").hidden = false;
  if (!(error instanceof DecoderError)) console.error(error);
}

/** Calls `take` with the files that are dropped on the page, and shows the errors that nothing catches. */
export function takeDrops(take, wanted) {
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  for (const end of ["dragleave", "drop"]) addEventListener(end, () => document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    const files = [...event.dataTransfer.files];
    if (files.length) take(files);
    else complain(new DecoderError(`what was dropped is not a file: drop ${wanted}`));
  });
  addEventListener("error", (event) => complain(event.error ?? new Error(event.message)));
  addEventListener("unhandledrejection", (event) => complain(event.reason));
}
