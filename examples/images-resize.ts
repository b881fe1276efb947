/**
 * The handler of `images.ts`: it runs in a thread of its own, so that a picture that takes its time holds up nothing else, not even the renewal of its
 * lease. What a module like this exports by default is the handler.
 */
import { RejectError } from 'millrace'
import type { Delivery } from 'millrace'

/** Width of a thumbnail in pixels; its height follows. */
const WIDTH = 32

export interface Picture {
  readonly width: number
  readonly height: number
  /** Red, green, blue, row by row. */
  readonly pixels: Uint8Array
}

/** Reads a PPM file (P6): a short text header, then the bytes of the pixels. @throws RejectError when it is none */
export function decodePpm(file: Uint8Array): Picture {
  const header = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(Buffer.from(file).toString('latin1', 0, 64))
  const width = Number(header?.[1])
  const height = Number(header?.[2])
  const pixels = file.subarray(header?.[0].length ?? 0)
  if (header === null || pixels.length !== width * height * 3) {
    // The same bytes will never be a picture: no use in trying again.
    throw new RejectError('this is no PPM file')
  }
  return { width, height, pixels }
}

export function encodePpm({ width, height, pixels }: Picture): Uint8Array {
  return Buffer.concat([Buffer.from(`P6\n${width} ${height}\n255\n`), pixels])
}

/** Each pixel of the result is the mean of those that it stands for. */
export function shrink(picture: Picture, width: number): Picture {
  const height = Math.max(1, Math.round((picture.height * width) / picture.width))
  const pixels = new Uint8Array(width * height * 3)
  for (let y = 0; y < height; y++) {
    const top = Math.floor((y * picture.height) / height)
    const bottom = Math.max(top + 1, Math.floor(((y + 1) * picture.height) / height))
    for (let x = 0; x < width; x++) {
      const left = Math.floor((x * picture.width) / width)
      const right = Math.max(left + 1, Math.floor(((x + 1) * picture.width) / width))
      for (let colour = 0; colour < 3; colour++) {
        let sum = 0
        for (let row = top; row < bottom; row++) {
          for (let column = left; column < right; column++) {
            sum += picture.pixels[(row * picture.width + column) * 3 + colour] ?? 0
          }
        }
        pixels[(y * width + x) * 3 + colour] = Math.round(sum / ((bottom - top) * (right - left)))
      }
    }
  }
  return { width, height, pixels }
}

/** Without codecs of its own (an export `topic`) a module gets the bytes of the record. */
export default function resize({ value }: Delivery<Uint8Array>): Uint8Array {
  return encodePpm(shrink(decodePpm(value ?? new Uint8Array()), WIDTH))
}
