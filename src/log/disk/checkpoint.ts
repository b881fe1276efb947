import { crc32c } from '../../bytes/crc32c.ts'
import { BrokerError } from '../../common/errors.ts'
import type { Offset } from '../../common/offset.ts'
import { readWhole, replaceFile } from '../../fs/file-system.ts'
import type { FileSystem } from '../../fs/file-system.ts'
import { findSystemCode } from '../../common/errors.ts'
import type { EpochStart } from '../epoch-history.ts'
import type { Companion } from '../partition-log.ts'

/** What the checkpoint knows of one partition: all of it durable. */
export interface CheckpointEntry {
  readonly topic: string
  readonly partition: number
  readonly topicId: string
  readonly companion: Companion | undefined
  readonly logStartOffset: Offset
  readonly durableEnd: Offset
  /** Where the durable end lies in the active segment's file. */
  readonly position: number
  /** Where the last batch begins there; -1 when the active segment is empty. */
  readonly lastBatchPosition: number
  readonly activeBase: Offset
  /** Wall clock at the first append to the active segment; 0 when it is empty. */
  readonly activeSinceMs: number
  /** Largest record timestamp in the active segment; -1 when there is none. */
  readonly activeMaxTimestampMs: number
  /** CRC-32C of the active segment's file up to `position`. */
  readonly activeCrc: number
  readonly sealedCount: number
  readonly lastAppendTimeMs: number
  readonly epochs: readonly EpochStart[]
  readonly epochsComplete: boolean
  /** Producer state at the durable end, or undefined when it is in the `.snapshot` file of that offset. */
  readonly producers: Uint8Array | undefined
}

export interface Checkpoint {
  readonly sequence: number
  readonly incarnation: number
  readonly clean: boolean
  readonly entries: readonly CheckpointEntry[]
}

const MAGIC = 'MRCP'
const FORMAT = 1
const STATE_SUFFIX = '/state'
const SLOTS = ['checkpoint.a', 'checkpoint.b'] as const

/**
 * Layout of a slot; integers are big-endian, i64 written as two u32.
 *   magic 'MRCP' · format u16 · flags u16 (1 clean) · sequence i64 · incarnation u32 · count u32 · entries · crc32c u32 of all before
 * An entry: topic (u16 length, ASCII; of a companion with `/state` behind it, which no topic's name can have) · partition u32 · topic id (36 ASCII) · log start, durable end, position, last batch position,
 * active base, active since, active max timestamp, last append time: i64 each · active crc u32 · sealed count u32 ·
 * epoch count u16 with bit 15 for complete · (epoch u32, start i64)… · producers length u32 (0xffffffff: in a file), bytes
 */
export function encodeCheckpoint(checkpoint: Checkpoint): Buffer {
  let size = 4 + 2 + 2 + 8 + 4 + 4 + 4
  for (const entry of checkpoint.entries) size += entryBytes(entry)
  const bytes = Buffer.alloc(size)
  let at = bytes.write(MAGIC, 'latin1')
  at = bytes.writeUInt16BE(FORMAT, at)
  at = bytes.writeUInt16BE(checkpoint.clean ? 1 : 0, at)
  at = writeI64(bytes, checkpoint.sequence, at)
  at = bytes.writeUInt32BE(checkpoint.incarnation, at)
  at = bytes.writeUInt32BE(checkpoint.entries.length, at)
  for (const entry of checkpoint.entries) at = writeEntry(bytes, entry, at)
  bytes.writeUInt32BE(crc32c(bytes, 0, at), at)
  return bytes
}

function entryBytes(entry: CheckpointEntry): number {
  const fixed = 2 + 4 + 36 + 8 * 8 + 4 + 4 + 2 + 4
  return (
    fixed + topicField(entry).length + entry.epochs.length * 12 + (entry.producers?.length ?? 0)
  )
}

function writeEntry(bytes: Buffer, entry: CheckpointEntry, start: number): number {
  const topic = topicField(entry)
  let at = bytes.writeUInt16BE(topic.length, start)
  at += bytes.write(topic, at, 'latin1')
  at = bytes.writeUInt32BE(entry.partition, at)
  at += bytes.write(entry.topicId.padEnd(36).slice(0, 36), at, 'latin1')
  for (const value of [
    entry.logStartOffset,
    entry.durableEnd,
    entry.position,
    entry.lastBatchPosition,
    entry.activeBase,
    entry.activeSinceMs,
    entry.activeMaxTimestampMs,
    entry.lastAppendTimeMs,
  ]) {
    at = writeI64(bytes, value, at)
  }
  at = bytes.writeUInt32BE(entry.activeCrc, at)
  at = bytes.writeUInt32BE(entry.sealedCount, at)
  at = bytes.writeUInt16BE(entry.epochs.length | (entry.epochsComplete ? 0x8000 : 0), at)
  for (const { epoch, startOffset } of entry.epochs) {
    at = bytes.writeUInt32BE(epoch, at)
    at = writeI64(bytes, startOffset, at)
  }
  at = bytes.writeUInt32BE(entry.producers?.length ?? 0xffffffff, at)
  if (entry.producers !== undefined) {
    bytes.set(entry.producers, at)
    at += entry.producers.length
  }
  return at
}

function topicField({ topic, companion }: CheckpointEntry): string {
  return companion === undefined ? topic : `${topic}/${companion}`
}

function writeI64(bytes: Buffer, value: number, at: number): number {
  const high = Math.floor(value / 2 ** 32)
  bytes.writeInt32BE(high, at)
  return bytes.writeUInt32BE(value - high * 2 ** 32, at + 4)
}

/**
 * @throws BrokerError STORAGE_ERROR when the bytes are not a whole slot, UNSUPPORTED_FORMAT when a later millrace wrote them
 */
export function decodeCheckpoint(bytes: Buffer): Checkpoint {
  const damaged = (why: string): BrokerError =>
    new BrokerError('STORAGE_ERROR', `a checkpoint slot is damaged: ${why}`)
  if (bytes.length < 28 || bytes.toString('latin1', 0, 4) !== MAGIC) throw damaged('no header')
  const end = bytes.length - 4
  if (crc32c(bytes, 0, end) !== bytes.readUInt32BE(end)) throw damaged('its checksum is wrong')
  const format = bytes.readUInt16BE(4)
  if (format !== FORMAT) {
    throw new BrokerError(
      'UNSUPPORTED_FORMAT',
      `the data was written in checkpoint format ${format}; this millrace reads format ${FORMAT}: use a newer one`,
      { format },
    )
  }
  const clean = (bytes.readUInt16BE(6) & 1) === 1
  const sequence = readI64(bytes, 8)
  const incarnation = bytes.readUInt32BE(16)
  const count = bytes.readUInt32BE(20)
  const entries: CheckpointEntry[] = []
  let at = 24
  for (let i = 0; i < count; i++) {
    const [entry, next] = readEntry(bytes, at)
    entries.push(entry)
    at = next
  }
  return { sequence, incarnation, clean, entries }
}

/** Bounds are not checked one by one: the checksum over the whole slot has been. */
function readEntry(bytes: Buffer, start: number): [CheckpointEntry, number] {
  let at = start
  const next = (): number => {
    const value = readI64(bytes, at)
    at += 8
    return value
  }
  const topicBytes = bytes.readUInt16BE(at)
  const field = bytes.toString('latin1', at + 2, at + 2 + topicBytes)
  const isCompanion = field.endsWith(STATE_SUFFIX)
  const topic = isCompanion ? field.slice(0, -STATE_SUFFIX.length) : field
  at += 2 + topicBytes
  const partition = bytes.readUInt32BE(at)
  const topicId = bytes.toString('latin1', at + 4, at + 40).trimEnd()
  at += 40
  const logStartOffset = next() as Offset // Written from offsets, and the checksum holds.
  const durableEnd = next() as Offset // The same.
  const position = next()
  const lastBatchPosition = next()
  const activeBase = next() as Offset // The same.
  const activeSinceMs = next()
  const activeMaxTimestampMs = next()
  const lastAppendTimeMs = next()
  const activeCrc = bytes.readUInt32BE(at)
  const sealedCount = bytes.readUInt32BE(at + 4)
  const epochCount = bytes.readUInt16BE(at + 8)
  at += 10
  const epochs: EpochStart[] = []
  for (let i = 0; i < (epochCount & 0x7fff); i++) {
    const epoch = bytes.readUInt32BE(at)
    at += 4
    epochs.push({ epoch, startOffset: next() as Offset }) // The same.
  }
  const producerBytes = bytes.readUInt32BE(at)
  at += 4
  const inline = producerBytes !== 0xffffffff
  const producers = inline ? bytes.subarray(at, at + producerBytes) : undefined
  if (inline) at += producerBytes
  const entry: CheckpointEntry = {
    topic,
    partition,
    topicId,
    companion: isCompanion ? 'state' : undefined,
    logStartOffset,
    durableEnd,
    position,
    lastBatchPosition,
    activeBase,
    activeSinceMs,
    activeMaxTimestampMs,
    activeCrc,
    sealedCount,
    lastAppendTimeMs,
    epochs,
    epochsComplete: (epochCount & 0x8000) !== 0,
    producers,
  }
  return [entry, at]
}

function readI64(bytes: Buffer, at: number): number {
  return bytes.readInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4)
}

/** The two slots, written in turn, so that a write that is cut short leaves the other one whole. */
export class CheckpointSlots {
  readonly #fs: FileSystem
  readonly #directory: string
  #next = 0
  #sequence = 0

  constructor(fs: FileSystem, directory: string) {
    this.#fs = fs
    this.#directory = directory
  }

  /** The newest whole slot, and how many were damaged. Undefined on a new directory, or when both are damaged. */
  async read(): Promise<{ readonly checkpoint: Checkpoint | undefined; readonly damaged: number }> {
    let newest: Checkpoint | undefined
    let damaged = 0
    for (const [i, name] of SLOTS.entries()) {
      const found = await this.#readSlot(name)
      if (found === 'damaged') damaged++
      if (found === undefined || found === 'damaged') continue
      if (newest !== undefined && newest.sequence >= found.sequence) continue
      newest = found
      this.#next = 1 - i
      this.#sequence = found.sequence
    }
    return { checkpoint: newest, damaged }
  }

  async #readSlot(name: string): Promise<Checkpoint | 'damaged' | undefined> {
    try {
      return decodeCheckpoint(await readWhole(this.#fs, `${this.#directory}/${name}`))
    } catch (error) {
      if (findSystemCode(error) === 'ENOENT') return undefined
      if (error instanceof BrokerError && error.code === 'UNSUPPORTED_FORMAT') throw error
      return 'damaged'
    }
  }

  /** Writes the slot whose turn it is: durable when it resolves. */
  async write(content: Omit<Checkpoint, 'sequence'>): Promise<void> {
    const checkpoint = { ...content, sequence: this.#sequence + 1 }
    const name = SLOTS[this.#next] ?? SLOTS[0]
    await replaceFile(this.#fs, this.#directory, name, encodeCheckpoint(checkpoint))
    this.#sequence = checkpoint.sequence
    this.#next = 1 - this.#next
  }
}
