const MAGIC = 0xfd2fb528
const SKIPPABLE_MAGIC = 0x184d2a50
const DICTIONARY_ID_BYTES: readonly number[] = [0, 1, 2, 4]
const CONTENT_SIZE_BYTES: readonly number[] = [0, 2, 4, 8]

/**
 * True when the bytes are whole zstd frames, one after the other, at least one. Walks over headers only (RFC 8878 §3.1). Node 22 decompresses
 * a frame that was cut off to nothing, without an error, so somebody has to look.
 */
export function isWholeZstd(bytes: Uint8Array): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let at = 0
  do {
    at = findFrameEnd(view, at)
  } while (at >= 0 && at < view.byteLength)
  return at === view.byteLength
}

/** One past the frame at `start`; -1 when none lies there in full. */
function findFrameEnd(view: DataView, start: number): number {
  const left = view.byteLength - start
  if (left < 5) return -1
  const magic = view.getUint32(start, true)
  if ((magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC) {
    return left < 8 ? -1 : within(view, start + 8 + view.getUint32(start + 4, true))
  }
  if (magic !== MAGIC) return -1
  const descriptor = view.getUint8(start + 4)
  const isSingleSegment = (descriptor & 0x20) !== 0
  const contentFlag = descriptor >>> 6
  const contentBytes =
    contentFlag === 0 && isSingleSegment ? 1 : (CONTENT_SIZE_BYTES[contentFlag] ?? 0)
  let at = start + 5 + (isSingleSegment ? 0 : 1)
  at += (DICTIONARY_ID_BYTES[descriptor & 3] ?? 0) + contentBytes
  for (let isLast = false; !isLast;) {
    if (at + 3 > view.byteLength) return -1
    const block = view.getUint16(at, true) | (view.getUint8(at + 2) << 16)
    isLast = (block & 1) === 1
    const type = (block >>> 1) & 3
    if (type === 3) return -1
    at += 3 + (type === 1 ? 1 : block >>> 3)
  }
  return within(view, at + ((descriptor & 4) === 0 ? 0 : 4))
}

function within(view: DataView, end: number): number {
  return end <= view.byteLength ? end : -1
}
