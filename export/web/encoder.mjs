/** An encoder exported as ONNX: pictures to the latents that a decoder makes them of. */

import { construct, DecoderError, inTurn } from "./decoder.mjs";

/** What encoders and scorers have in common: a picture in, several tensors out. Of a class there are: */
export class OfPictures {
  static kind = ""; // what messages call it
  static outputs = [];
  #ort;
  #session;

  /**
   * Reads one.
   *
   * @param ort as for `Decoder.load`.
   * @param source as for `Decoder.load`.
   * @throws {DecoderError} the file is missing, damaged, or something else.
   */
  static load(ort, source, options = {}) {
    return construct(ort, source, options, () => this);
  }

  /** Use `load`. */
  constructor(ort, session, name) {
    const { kind, outputs } = this.constructor;
    const names = [...session.inputNames, ...session.outputNames];
    if (String(session.inputNames) !== "image" || String([...session.outputNames].sort()) !== String([...outputs].sort())) {
      const wanted = ["image", ...outputs.slice(0, -1)].join(", ");
      throw new DecoderError(`${name} is not ${kind}: it has ${names.join(", ")} where one has ${wanted} and ${outputs.at(-1)}`);
    }
    this.#ort = ort;
    this.#session = session;
    /** [height, width, channels] */
    this.imageShape = session.inputMetadata[0].shape.slice(1);
  }

  /** All tensors of a picture, by name. */
  async run(pixels) {
    const size = this.imageShape.reduce((one, other) => one * other);
    if (pixels.length !== size) throw new DecoderError(`the picture has ${pixels.length} values: give ${size}`);
    if (!pixels.every(Number.isFinite)) throw new DecoderError("the picture has values that are not finite numbers");
    const image = new this.#ort.Tensor("float32", pixels, [1, ...this.imageShape]);
    return inTurn(() => this.#session.run({ image }));
  }

  /** Frees its memory: it can compute nothing more. */
  async release() {
    await inTurn(() => this.#session.release());
  }
}

export class Encoder extends OfPictures {
  static kind = "an encoder";
  static outputs = ["mean", "log_var"];

  /**
   * The mean of a picture's latents.
   *
   * @param {Float32Array} pixels in [0, 1], rows first, channels last.
   * @returns {Promise<Float32Array>}
   */
  async encode(pixels) {
    return (await this.run(pixels)).mean.data;
  }
}

/**
 * What an encoder is given for a picture: the centred square, in its size.
 *
 * @param {ImageBitmap | HTMLImageElement | HTMLCanvasElement} picture
 * @param {number[]} shape [height, width, channels], of 1 or 3 channels.
 * @returns {Float32Array}
 */
export function pixelsOf(picture, [height, width, channels]) {
  const side = Math.min(picture.width, picture.height);
  let source = picture;
  let [left, top, size] = [(picture.width - side) / 2, (picture.height - side) / 2, side];
  // By halves: browsers look at four pixels for each that they draw, and skip the others of a larger picture.
  while (size >= 2 * Math.max(width, height)) {
    const half = Math.ceil(size / 2);
    const canvas = Object.assign(document.createElement("canvas"), { width: half, height: half });
    canvas.getContext("2d").drawImage(source, left, top, size, size, 0, 0, half, half);
    [source, left, top, size] = [canvas, 0, 0, half];
  }
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // what is transparent becomes white, as in training
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, left, top, size, size, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return Float32Array.from({ length: height * width * channels }, (_, place) => {
    const pixel = 4 * Math.floor(place / channels);
    if (channels === 3) return data[pixel + (place % 3)] / 255;
    return (0.299 * data[pixel] + 0.587 * data[pixel + 1] + 0.114 * data[pixel + 2]) / 255;
  });
}
