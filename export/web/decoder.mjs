/**
 * Generators, decoders and priors exported as ONNX, with onnxruntime-node in Node or onnxruntime-web in a page: give
 * them the one or the other.
 *
 *     const generator = await Generator.load(ort, "generator.onnx");
 *     const images = await generator.sample(16, 0);
 *     const { data, width, height } = toRGBA(images, 3); // the fourth, for new ImageData(data, width, height)
 */

// A download may take as long as it likes while bytes come in.
const STALL_MS = 30_000;

/** A model, latents, noise or images that cannot be used: the message says what, where and what to do. */
export class DecoderError extends Error {
  name = "DecoderError";
}

let turn = Promise.resolve();

/** Runs work after all that came before: runs of onnxruntime-web, of all its models, share a stack, which those under
 * way at once would free under each other. */
export function inTurn(work) {
  const run = turn.then(work);
  turn = run.catch(() => {}); // the caller hears of it; the next one runs all the same
  return run;
}

/** What decoders, generators and priors have in common: rows of `latentDim` numbers in, one tensor out. */
class Network {
  static types = ["float32"]; // of what it returns
  #ort;
  #session;

  /**
   * Reads a network of this kind.
   *
   * @param ort the module onnxruntime-node or onnxruntime-web, 1.22 or newer.
   * @param {string | URL | Blob | ArrayBuffer | Uint8Array} source the .onnx file: its address in a page, its path or
   *     address in Node, or the file itself.
   * @param {object} options onnxruntime's session options, {executionProviders: ["webgpu"]} say.
   * @returns {Promise<Network>} of the class that this is called of.
   * @throws {DecoderError} the file is missing, damaged, or something else.
   * @throws {Error} onnxruntime itself did not start.
   */
  static load(ort, source, options = {}) {
    return construct(ort, source, options, () => this);
  }

  /** Use `load`. */
  constructor(ort, session, name) {
    const { kind, input, output, rank, types } = this.constructor;
    const names = [...session.inputNames, ...session.outputNames];
    if (names.join() !== `${input},${output}`) {
      const wanted = `a ${kind} has ${input} and ${output}`;
      throw new DecoderError(`${name} is not a ${kind}: it has ${names.join(", ")} where ${wanted}`);
    }
    if (!session.inputMetadata) throw new Error("this onnxruntime does not tell shapes: install 1.22 or newer");
    const values = [session.inputMetadata[0], session.outputMetadata[0]];
    const shapes = values.map((value) => value.shape.slice(1));
    const wrong = (what) => new DecoderError(`${name} is not a ${kind}: ${input} is ${what[0]}, ${output} ${what[1]}`);
    if (shapes[0].length !== 1 || shapes[1].length !== rank || !shapes.flat().every(Number.isInteger)) {
      throw wrong(shapes.map((shape) => `[batch, ${shape}]`));
    }
    if (values[0].type !== "float32" || !types.includes(values[1].type)) {
      throw wrong([values[0].type, `${values[1].type}, not float32${types.length > 1 ? " or uint8" : ""}`]);
    }
    this.#ort = ort;
    this.#session = session;
    /** The name of what it takes: "z", latents, or "noise", standard normal. */
    this.input = input;
    /** Numbers in a row of it. */
    this.latentDim = shapes[0][0];
    /** Of what it returns for a row: [height, width, channels], or [latentDim]. */
    this.outputShape = shapes[1];
    /** The type of that: "float32", or of images "uint8" too. */
    this.outputType = values[1].type;
  }

  /**
   * What the network makes of rows.
   *
   * Any number of calls may be under way at once; they run one after another.
   *
   * @param rows n rows of latentDim numbers, or n * latentDim numbers in one list; lists are arrays or typed arrays.
   * @returns {Promise<{data: Float32Array | Uint8Array, dims: number[]}>} dims is [n, ...outputShape].
   * @throws {DecoderError} rows of another size, that are not numbers, or not finite.
   */
  async run(rows) {
    const values = this.#pack(rows);
    const tensor = new this.#ort.Tensor("float32", values, [values.length / this.latentDim, this.latentDim]);
    const { data, dims } = (await inTurn(() => this.#session.run({ [this.input]: tensor })))[this.constructor.output];
    return { data, dims: [...dims] };
  }

  /**
   * As `run`, `size` rows at a time: of many, what is between the layers takes much memory, and a page that waits for
   * all of them stands still.
   */
  async *batches(rows, size = 32) {
    const values = this.#pack(rows);
    for (let start = 0; start < values.length; start += size * this.latentDim) {
      yield await this.run(values.subarray(start, start + size * this.latentDim));
    }
  }

  #pack(rows) {
    return pack(rows, this.latentDim, this.input === "z" ? "latents" : "noise", this.constructor.kind);
  }

  /**
   * Draws rows from the standard normal; the same seed gives the same ones, and the first of a larger count too.
   *
   * @param {number} count whole, from 1 on.
   * @param {number} seed whole, from 0 to 2**32 - 1. Not numpy's: other numbers than the Python runtime's.
   * @returns {Float32Array} count * latentDim numbers.
   * @throws {DecoderError} count or seed is something else.
   */
  draw(count, seed) {
    if (!Number.isInteger(count) || count < 1) {
      throw new DecoderError(`count is ${describe(count)}: give a whole number from 1 on`);
    }
    return Float32Array.from({ length: count * this.latentDim }, standardNormal(seed));
  }

  /** Frees the memory that onnxruntime holds, after the calls under way. */
  async release() {
    await inTurn(() => this.#session.release());
  }
}

/** What decoders and generators have in common: `run` gives images, values in [0, 1], or 0..255 in a Uint8Array. */
class Images extends Network {
  static output = "image";
  static rank = 3;
  static types = ["float32", "uint8"];

  /** [height, width, channels] */
  get imageShape() {
    return this.outputShape;
  }

  /**
   * Images of `draw(count, seed)`, all in one batch.
   *
   * @returns {Promise<{data, dims, drawn: Float32Array}>} as `run`, and what was drawn.
   * @throws {DecoderError} count or seed is none.
   */
  async sample(count, seed) {
    const drawn = this.draw(count, seed);
    return { ...(await this.run(drawn)), drawn };
  }
}

/** Prior and decoder in one: standard normal noise to images. Samples are made with it. */
export class Generator extends Images {
  static kind = "generator";
  static input = "noise";

  /** Images of noise: as `run`. */
  generate(noise) {
    return this.run(noise);
  }
}

/** Latents to images: those of an encoder, or edited ones. Standard normal draws are right where the prior is that. */
export class Decoder extends Images {
  static kind = "decoder";
  static input = "z";

  /** Images of latents: as `run`. */
  decode(z) {
    return this.run(z);
  }
}

/** Standard normal noise to latents, to be changed and decoded. */
export class Prior extends Network {
  static kind = "prior";
  static input = "noise";
  static output = "z";
  static rank = 1;

  /**
   * Latents of noise.
   *
   * @returns {Promise<Float32Array>} n * latentDim numbers.
   */
  async latents(noise) {
    return (await this.run(noise)).data;
  }
}

/**
 * Reads a generator or a decoder, whichever the file is by the name of its input.
 *
 * @param ort, source, options as for `Generator.load`.
 * @returns {Promise<Generator | Decoder>}
 * @throws {DecoderError} the file is missing, damaged, or neither.
 */
export function load(ort, source, options = {}) {
  return construct(ort, source, options, (session, name) => {
    const names = [...session.inputNames, ...session.outputNames];
    const found = [Generator, Decoder].find(({ input, output }) => names.join() === `${input},${output}`);
    if (found) return found;
    const wanted = "a decoder has z and image, and a generator noise and image";
    throw new DecoderError(`${name} is neither generator nor decoder: it has ${names.join(", ")} where ${wanted}`);
  });
}

/** A file opened as the class that `classOf` names for it. */
export async function construct(ort, source, options, classOf) {
  const { name, bytes } = await read(source);
  await checkSum(name, bytes);
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, options);
  } catch (error) {
    // onnxruntime's errors share no class; those of a runtime that does not start name the backend.
    if (/\bbackend\b/i.test(error.message)) {
      throw new Error(`onnxruntime did not start: ${error.message}`, { cause: error });
    }
    throw new DecoderError(
      `${name} is not an ONNX model that onnxruntime can read: export it again (${error.message ?? error})`,
      { cause: error },
    );
  }
  try {
    return new (classOf(session, name))(ort, session, name);
  } catch (error) {
    await session.release();
    throw error;
  }
}

/**
 * The pixels of one image, as ImageData takes them.
 *
 * @param {{data: Float32Array | Uint8Array, dims: number[]}} images of 1 or 3 channels, as `run` gives them; of floats
 *     what is beyond [0, 1] is cut off.
 * @param {number} index which of them.
 * @returns {{data: Uint8ClampedArray, width: number, height: number}} RGBA, opaque.
 * @throws {DecoderError} other channels, or no such image.
 */
export function toRGBA({ data, dims }, index = 0) {
  const [height, width, channels] = dims.slice(-3);
  if (channels !== 1 && channels !== 3) {
    throw new DecoderError(`images of ${channels} channels cannot be shown: only those of 1 or 3`);
  }
  const pixels = height * width;
  const start = index * pixels * channels;
  if (!(Number.isInteger(index) && start >= 0 && start < data.length)) {
    throw new DecoderError(`there is no image ${describe(index)}: dims are [${dims}]`);
  }
  const scale = data instanceof Uint8Array ? 1 : 255;
  const rgba = new Uint8ClampedArray(4 * pixels); // rounds and clamps what is put into it
  for (let pixel = 0; pixel < pixels; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      rgba[4 * pixel + channel] = scale * data[start + pixel * channels + (channels === 3 ? channel : 0)];
    }
    rgba[4 * pixel + 3] = 255;
  }
  return { data: rgba, width, height };
}

/**
 * A generator of standard normal numbers: xoshiro128** (Blackman and Vigna), seeded by SplitMix32, and Box-Muller.
 *
 * @param {number} seed whole, from 0 to 2**32 - 1.
 * @returns {() => number}
 * @throws {DecoderError} seed is something else.
 */
export function standardNormal(seed) {
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
    throw new DecoderError(`seed is ${describe(seed)}: give a whole number from 0 to ${2 ** 32 - 1}`);
  }
  const state = Uint32Array.from({ length: 4 }, (_, step) => {
    let mixed = (seed + Math.imul(step + 1, 0x9e3779b9)) | 0;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return mixed ^ (mixed >>> 15);
  });
  const rotate = (value, bits) => (value << bits) | (value >>> (32 - bits));
  const uniform = () => {
    const result = Math.imul(rotate(Math.imul(state[1], 5), 7), 9) >>> 0;
    const shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotate(state[3], 11);
    return (result + 0.5) / 2 ** 32; // between 0 and 1, neither of them
  };
  let spare = null;
  return () => {
    if (spare !== null) {
      const value = spare;
      spare = null;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(uniform()));
    const angle = 2 * Math.PI * uniform();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

const isList = (value) => Array.isArray(value) || (ArrayBuffer.isView(value) && "length" in value);

function describe(value) {
  if (typeof value === "string") return `the text ${JSON.stringify(value.slice(0, 20))}`;
  if (typeof value === "bigint") return `the BigInt ${value}`;
  return typeof value === "object" && value !== null ? "an object" : String(value);
}

/** Latents or noise in any of the forms that `run` takes, as one Float32Array. */
function pack(rows, latentDim, what, kind) {
  const verb = what === "latents" ? "are" : "is";
  if (!isList(rows)) throw new DecoderError(`${what} ${verb} ${describe(rows)}: give rows of ${latentDim} numbers`);
  if (rows.length === 0) throw new DecoderError(`there ${verb} no ${what}: give rows of ${latentDim} numbers`);
  const inRows = isList(rows[0]);
  if (!inRows && rows.length % latentDim !== 0) {
    const wanted = `this ${kind} takes ${latentDim} numbers an image`;
    throw new DecoderError(`${what} ${verb} a list of ${rows.length}: ${wanted}`);
  }
  const values = new Float32Array(inRows ? rows.length * latentDim : rows.length);
  (inRows ? rows : [rows]).forEach((row, index) => {
    const where = inRows ? `row ${index} of the ${what}` : `the list of ${what}`;
    if (!isList(row)) throw new DecoderError(`${where} is ${describe(row)}: give ${latentDim} numbers`);
    if (inRows && row.length !== latentDim) {
      throw new DecoderError(`${where} has ${row.length} numbers: this ${kind} takes ${latentDim}`);
    }
    for (let column = 0; column < row.length; column++) {
      const value = row[column];
      if (typeof value !== "number") throw new DecoderError(`${where} holds ${describe(value)}: give numbers`);
      if (!Number.isFinite(Math.fround(value))) {
        throw new DecoderError(`${where} holds ${value}: give finite numbers that float32 can hold`);
      }
      values[index * latentDim + column] = value;
    }
  });
  return values;
}

// The entry "sha256" of the file's metadata, with which the exporter ends it, up to the 64 digits of the sum before it.
const SUM_ENTRY = [0x72, 0x4a, 0x0a, 0x06, ...new TextEncoder().encode("sha256"), 0x12, 0x40];
const SUM_DIGITS = 64;

/** Compares a file with the checksum in it, where it has one and this page may compute one (https, or this machine). */
export async function checkSum(name, bytes) {
  const start = bytes.length - SUM_ENTRY.length - SUM_DIGITS;
  if (start < 0 || !SUM_ENTRY.every((value, index) => bytes[start + index] === value)) return;
  if (!globalThis.crypto?.subtle) return;
  const recorded = new TextDecoder().decode(bytes.subarray(start + SUM_ENTRY.length));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes.subarray(0, start)));
  if (Array.from(digest, (value) => value.toString(16).padStart(2, "0")).join("") !== recorded) {
    throw new DecoderError(`${name} is not what was exported (its checksum differs): copy it or export it again`);
  }
}

/** The bytes of a model, and what to call it. */
export async function read(source) {
  if (source instanceof Blob) {
    return { name: source.name ?? "the model", bytes: new Uint8Array(await source.arrayBuffer()) };
  }
  if (source instanceof ArrayBuffer) return { name: "the model", bytes: new Uint8Array(source) };
  if (source instanceof Uint8Array) return { name: "the model", bytes: source };
  if (typeof source !== "string" && !(source instanceof URL)) {
    throw new DecoderError(`the model is ${describe(source)}: give an address, a path or the bytes of an .onnx file`);
  }
  const name = String(source);
  // Asked for this way, Node's files are in nobody's way when a bundler makes a page of this module.
  const files = globalThis.process?.getBuiltinModule?.("node:fs/promises");
  if (!files || /^(https?|blob|data):/i.test(name)) return { name, bytes: await download(name) };
  try {
    return { name, bytes: await files.readFile(/^file:/i.test(name) ? new URL(name) : name) };
  } catch (error) {
    if (error.code === "ENOENT") throw new DecoderError(`no ONNX file at ${name}`, { cause: error });
    throw new DecoderError(`cannot read ${name}: ${error.message}`, { cause: error });
  }
}

async function download(url) {
  const controller = new AbortController();
  let timer;
  const within = async (promise) => {
    timer = setTimeout(() => controller.abort(), STALL_MS);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  };
  try {
    const response = await within(fetch(url, { signal: controller.signal }));
    if (!response.ok) throw new DecoderError(`no ONNX file at ${url}: the server answers ${response.status}`);
    const reader = response.body.getReader();
    const parts = [];
    for (;;) {
      const { done, value } = await within(reader.read());
      if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
      parts.push(value);
    }
  } catch (error) {
    if (error instanceof DecoderError) throw error;
    const stalled = controller.signal.aborted && `nothing came for ${STALL_MS / 1000} s`;
    const reason = stalled || (error.cause?.message ?? error.message);
    throw new DecoderError(`cannot load ${url}: ${reason}`, { cause: error });
  }
}
