/** A scorer exported as ONNX: how unusual pictures are, and where it shows. */

import { construct, DecoderError, inTurn } from "./decoder.mjs";

export class Scorer {
  #ort;
  #session;

  /**
   * Reads a scorer.
   *
   * @param ort as for `Decoder.load`.
   * @param source as for `Decoder.load`.
   * @returns {Promise<Scorer>}
   * @throws {DecoderError} the file is missing, damaged, or no scorer.
   */
  static load(ort, source, options = {}) {
    return construct(ort, source, options, () => Scorer);
  }

  /** Use `Scorer.load`. */
  constructor(ort, session, name) {
    const names = [...session.inputNames, ...[...session.outputNames].sort()];
    if (names.join() !== "image,error_map,rank,reconstruction,score") {
      const wanted = "image, error_map, rank, reconstruction and score";
      throw new DecoderError(`${name} is not a scorer: it has ${names.join(", ")} where one has ${wanted}`);
    }
    this.#ort = ort;
    this.#session = session;
    /** [height, width, channels] */
    this.imageShape = session.inputMetadata[0].shape.slice(1);
  }

  /**
   * How unusual a picture is.
   *
   * @param {Float32Array} pixels in [0, 1], rows first, channels last; `pixelsOf` of encoder.mjs gives them.
   * @returns {Promise<{score: number, rank: number, errorMap: Float32Array, reconstruction: Float32Array}>} `rank` from
   *     0 to 1: 0.99 is more unusual than 99 of 100 usual pictures; `errorMap` [height, width].
   */
  async score(pixels) {
    const size = this.imageShape.reduce((one, other) => one * other);
    if (pixels.length !== size) throw new DecoderError(`the picture has ${pixels.length} values: give ${size}`);
    if (!pixels.every(Number.isFinite)) throw new DecoderError("the picture has values that are not finite numbers");
    const image = new this.#ort.Tensor("float32", pixels, [1, ...this.imageShape]);
    const found = await inTurn(() => this.#session.run({ image }));
    return {
      score: found.score.data[0],
      rank: found.rank.data[0],
      errorMap: found.error_map.data,
      reconstruction: found.reconstruction.data,
    };
  }
}
