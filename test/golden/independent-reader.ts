/**
 * Reads a data folder by segments/README.md alone: node:fs and node:zlib, and nothing of src/. Slow and plain on purpose. Whoever changes the
 * format has to change the page, and then this.
 */
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'

export interface ReadRecord {
  readonly offset: number
  readonly timestampMs: number
  readonly key: string | undefined
  readonly value: string | undefined
  readonly headers: readonly { readonly key: string; readonly value: string | undefined }[]
}

export interface ReadPartition {
  readonly topic: string
  readonly partition: number
  readonly topicId: string
  readonly logStartOffset: number
  readonly endOffset: number
  readonly records: readonly ReadRecord[]
  /** How many entries of each kind of file were checked against the batches. */
  readonly checked: {
    readonly batches: number
    readonly index: number
    readonly timeindex: number
    readonly seals: number
    readonly snapshots: number
  }
  /** Last sequence of each producer, from the batches. */
  readonly lastSequences: ReadonlyMap<number, number>
}

export interface ReadFolder {
  readonly clusterId: string
  readonly incarnation: number
  readonly isClean: boolean
  readonly partitions: readonly ReadPartition[]
}

function check(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(`the data folder is not as the page says: ${what}`)
}

export function crcOf(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0)
  }
  return (crc ^ 0xffffffff) >>> 0
}

interface SmallFile {
  readonly format: number
  readonly clusterId: string
  readonly topic: string
  readonly partition: number
  readonly topicId: string
}

function readJson(path: string): SmallFile {
  const value = JSON.parse(readFileSync(path, 'utf8')) as SmallFile // Its fields are checked by use.
  check(value.format === 1, `${path} has format ${value.format}`)
  return value
}

export function readDataFolder(folder: string): ReadFolder {
  const { clusterId } = readJson(join(folder, 'broker.json'))
  const checkpoint = newestCheckpoint(folder)
  check(
    readFileSync(join(folder, 'incarnation'), 'utf8') === `${checkpoint.incarnation}\n`,
    'the incarnation file agrees with the checkpoint',
  )
  const partitions = readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && /^[A-Za-z0-9._-]+-\d+$/.test(entry.name))
    .map((entry) => entry.name)
    .sort()
    .map((name) => readPartition(join(folder, name), checkpoint))
  return { clusterId, incarnation: checkpoint.incarnation, isClean: checkpoint.isClean, partitions }
}

// ── the checkpoint ─────────────────────────────────────────────────────────────────────────────

interface Entry {
  readonly topicId: string
  readonly partition: number
  readonly logStart: number
  readonly durableEnd: number
  readonly position: number
  readonly lastBatchPosition: number
  readonly activeBase: number
  readonly activeCrc: number
  readonly sealed: number
  readonly epochs: readonly { readonly epoch: number; readonly start: number }[]
}

interface Checkpoint {
  readonly sequence: number
  readonly incarnation: number
  readonly isClean: boolean
  readonly entries: readonly Entry[]
}

function newestCheckpoint(folder: string): Checkpoint {
  const found: Checkpoint[] = []
  for (const slot of ['checkpoint.a', 'checkpoint.b']) {
    const path = join(folder, slot)
    if (!existsSync(path)) continue
    const bytes = readFileSync(path)
    const crcAt = bytes.length - 4
    const isWhole = crcAt >= 24 && crcOf(bytes.subarray(0, crcAt)) === bytes.readUInt32BE(crcAt)
    if (isWhole) found.push(parseCheckpoint(bytes))
  }
  const [newest] = found.sort((a, b) => b.sequence - a.sequence)
  check(newest !== undefined, 'one slot is whole')
  return newest
}

class Fields {
  at = 0
  readonly bytes: Buffer

  constructor(bytes: Buffer) {
    this.bytes = bytes
  }

  u8(): number {
    return this.bytes.readUInt8(this.at++)
  }
  u16(): number {
    return this.bytes.readUInt16BE((this.at += 2) - 2)
  }
  i16(): number {
    return this.bytes.readInt16BE((this.at += 2) - 2)
  }
  u32(): number {
    return this.bytes.readUInt32BE((this.at += 4) - 4)
  }
  i32(): number {
    return this.bytes.readInt32BE((this.at += 4) - 4)
  }
  i64(): number {
    return Number(this.bytes.readBigInt64BE((this.at += 8) - 8))
  }
  text(length: number): string {
    return this.bytes.toString('latin1', this.at, (this.at += length))
  }
  varint(): number {
    let value = 0n
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.u8()
      value |= BigInt(byte & 0x7f) << shift
      if (byte < 0x80) break
    }
    return Number((value >> 1n) ^ -(value & 1n))
  }
  piece(): string | undefined {
    const length = this.varint()
    if (length < 0) return undefined
    return this.bytes.toString('utf8', this.at, (this.at += length))
  }
}

function parseCheckpoint(bytes: Buffer): Checkpoint {
  const fields = new Fields(bytes)
  check(fields.text(4) === 'MRCP', 'a slot begins with MRCP')
  check(fields.u16() === 1, 'a slot is of format 1')
  const isClean = (fields.u16() & 1) === 1
  const sequence = fields.i64()
  const incarnation = fields.u32()
  const entries: Entry[] = []
  for (let left = fields.u32(); left > 0; left--) {
    fields.text(fields.u16())
    const partition = fields.u32()
    const topicId = fields.text(36)
    const [logStart, durableEnd, position, lastBatchPosition] = [
      fields.i64(),
      fields.i64(),
      fields.i64(),
      fields.i64(),
    ]
    const activeBase = fields.i64()
    fields.at += 3 * 8 // Active since, active max timestamp, last append time.
    const activeCrc = fields.u32()
    const sealed = fields.u32()
    const count = fields.u16() & 0x7fff
    const epochs = Array.from({ length: count }, () => ({
      epoch: fields.u32(),
      start: fields.i64(),
    }))
    const producerBytes = fields.u32()
    if (producerBytes !== 0xffffffff) {
      checkProducers(bytes.subarray(fields.at, fields.at + producerBytes), durableEnd)
      fields.at += producerBytes
    }
    entries.push({
      topicId,
      partition,
      logStart,
      durableEnd,
      position,
      lastBatchPosition,
      activeBase,
      activeCrc,
      sealed,
      epochs,
    })
  }
  check(fields.at === bytes.length - 4, 'a slot has nothing but its entries')
  return { sequence, incarnation, isClean, entries }
}

function checkProducers(bytes: Buffer, offset: number): void {
  check(crcOf(bytes.subarray(4)) === bytes.readUInt32BE(0), 'the crc of producer state')
  const fields = new Fields(bytes)
  fields.at = 4
  check(fields.i16() === 1, 'the version of producer state')
  check(fields.i64() === offset, 'the offset of producer state')
  for (let producers = fields.u32(); producers > 0; producers--) {
    fields.i64()
    const batches = fields.u8()
    check(batches >= 1 && batches <= 5, 'one to five batches per producer')
    for (let i = 0; i < batches; i++) {
      fields.at += 2 + 4 + 4
      check(fields.i64() < offset, 'batches lie below the offset')
      fields.i64()
    }
  }
  check(fields.at === bytes.length, 'producer state has nothing behind it')
}

// ── a partition ────────────────────────────────────────────────────────────────────────────────

interface Batch {
  readonly baseOffset: number
  readonly endOffset: number
  readonly position: number
  readonly epoch: number
  readonly maxTimestamp: number
  readonly bytes: Buffer
}

function readPartition(folder: string, checkpoint: Checkpoint): ReadPartition {
  const { topic, partition, topicId } = readJson(join(folder, 'partition.json'))
  const entry = checkpoint.entries.find(
    (one) => one.topicId === topicId && one.partition === partition,
  )
  const names = readdirSync(folder)
  const bases = names
    .filter((name) => /^\d{20}\.log$/.test(name))
    .map((name) => Number(name.slice(0, 20)))
    .sort((a, b) => a - b)
  check(bases.length > 0, 'a partition has a segment')
  const checked = { batches: 0, index: 0, timeindex: 0, seals: 0, snapshots: 0 }
  const records: ReadRecord[] = []
  const lastSequences = new Map<number, number>()
  const logStartOffset = entry?.logStart ?? bases[0] ?? 0
  let endOffset = bases[0] ?? 0
  let epoch = 0
  for (const [i, base] of bases.entries()) {
    const next = bases[i + 1] ?? Infinity
    check(endOffset === base, 'a segment begins where the one before ends')
    const stem = join(folder, String(base).padStart(20, '0'))
    const file = readFileSync(`${stem}.log`)
    const batches = readBatches(file, base, next, epoch, checkpoint.incarnation)
    for (const batch of batches) {
      endOffset = batch.endOffset
      epoch = batch.epoch
      const written = entry?.epochs.findLast(({ start }) => start <= batch.baseOffset)
      if (written !== undefined && batch.endOffset <= (entry?.durableEnd ?? 0)) {
        check(written.epoch === batch.epoch, 'the checkpoint knows which epoch wrote a batch')
      }
      const producer = Number(batch.bytes.readBigInt64BE(43))
      const sequence = batch.bytes.readInt32BE(53)
      if (producer >= 0 && sequence >= 0) {
        lastSequences.set(producer, sequence + batch.bytes.readInt32BE(23))
      }
      for (const record of readRecords(batch)) {
        if (record.offset >= logStartOffset) records.push(record)
      }
    }
    checked.batches += batches.length
    const isSealed = i < bases.length - 1
    checked.index += checkIndex(`${stem}.index`, base, batches, isSealed)
    checked.timeindex += checkTimeIndex(`${stem}.timeindex`, base, batches, isSealed)
    if (existsSync(`${stem}.seal`)) {
      check(isSealed, 'the active segment has no seal')
      checkSeal(stem, base, endOffset, batches)
      checked.seals++
    }
    if (entry?.activeBase === base) checkActive(entry, file, batches)
  }
  for (const name of names.filter((one) => /^\d{20}\.snapshot$/.test(one))) {
    checkProducers(readFileSync(join(folder, name)), Number(name.slice(0, 20)))
    checked.snapshots++
  }
  check(endOffset >= (entry?.durableEnd ?? 0), 'what was durable is there')
  if (checkpoint.isClean) check(endOffset === entry?.durableEnd, 'a clean stop covers everything')
  return { topic, partition, topicId, logStartOffset, endOffset, records, checked, lastSequences }
}

/** The batches of a file that can be believed, up to the first that cannot, or to `next`. */
function readBatches(
  file: Buffer,
  base: number,
  next: number,
  firstEpoch: number,
  incarnation: number,
): Batch[] {
  const batches: Batch[] = []
  let [position, offset, epoch] = [0, base, firstEpoch]
  while (position + 61 <= file.length && offset < next) {
    const size = 12 + file.readInt32BE(position + 8)
    if (size < 61 || position + size > file.length) break
    const bytes = file.subarray(position, position + size)
    const batchEpoch = bytes.readInt32BE(12)
    if (
      bytes.readInt8(16) !== 2 ||
      crcOf(bytes.subarray(21)) !== bytes.readUInt32BE(17) ||
      Number(bytes.readBigInt64BE(0)) !== offset ||
      batchEpoch < epoch ||
      batchEpoch > incarnation
    ) {
      break
    }
    const endOffset = offset + bytes.readInt32BE(23) + 1
    // An empty batch has no time.
    const maxTimestamp = bytes.readInt32BE(57) === 0 ? -1 : Number(bytes.readBigInt64BE(35))
    batches.push({
      baseOffset: offset,
      endOffset,
      position,
      epoch: batchEpoch,
      maxTimestamp,
      bytes,
    })
    position += size
    offset = endOffset
    epoch = batchEpoch
  }
  return batches
}

function readRecords(batch: Batch): ReadRecord[] {
  const attributes = batch.bytes.readInt16BE(21)
  if ((attributes & 0x20) !== 0) return [] // Control batches are not for consumers.
  const isAppendTime = (attributes & 0x08) !== 0
  const baseTimestamp = Number(batch.bytes.readBigInt64BE(27))
  const fields = new Fields(decompress(attributes & 7, batch.bytes.subarray(61)))
  const records: ReadRecord[] = []
  for (let left = batch.bytes.readInt32BE(57); left > 0; left--) {
    const length = fields.varint()
    const end = fields.at + length
    check(fields.u8() === 0, 'a record has no attributes')
    const timestampMs = baseTimestamp + fields.varint()
    const offset = batch.baseOffset + fields.varint()
    const key = fields.piece()
    const value = fields.piece()
    const count = fields.varint()
    const headers = Array.from({ length: count }, () => ({
      key: fields.piece() ?? '',
      value: fields.piece(),
    }))
    check(fields.at === end, 'a record is as long as it says')
    records.push({
      offset,
      timestampMs: isAppendTime ? batch.maxTimestamp : timestampMs,
      key,
      value,
      headers,
    })
  }
  check(fields.at === fields.bytes.length, 'a batch has nothing behind its records')
  return records
}

function decompress(codec: number, bytes: Buffer): Buffer {
  if (codec === 0) return bytes
  if (codec === 1) return gunzipSync(bytes)
  check(codec === 3, `codec ${codec} is one that this reader knows`)
  return decompressLz4Frame(bytes)
}

function decompressLz4Frame(bytes: Buffer): Buffer {
  check(bytes.readUInt32LE(0) === 0x184d2204, 'an lz4 frame begins with its magic')
  const flags = bytes.readUInt8(4)
  const blockChecksum = (flags & 0x10) !== 0 ? 4 : 0
  let at = 4 + 2 + ((flags & 0x08) !== 0 ? 8 : 0) + 1
  let output: Buffer = Buffer.alloc(0)
  for (;;) {
    const word = bytes.readUInt32LE(at)
    at += 4
    if (word === 0) return output
    const size = word & 0x7fffffff
    const block = bytes.subarray(at, at + size)
    output = word >>> 31 === 1 ? Buffer.concat([output, block]) : decompressLz4Block(block, output)
    at += size + blockChecksum
  }
}

function decompressLz4Block(block: Buffer, before: Buffer): Buffer {
  const output = [...before]
  let at = 0
  const long = (nibble: number): number => {
    let length = nibble
    if (nibble === 15) for (let more = 255; more === 255; length += more) more = block[at++] ?? 0
    return length
  }
  while (at < block.length) {
    const token = block[at++] ?? 0
    for (let left = long(token >>> 4); left > 0; left--) output.push(block[at++] ?? 0)
    if (at >= block.length) break
    const distance = block.readUInt16LE(at)
    at += 2
    for (let left = long(token & 15) + 4; left > 0; left--) {
      output.push(output[output.length - distance] ?? 0)
    }
  }
  return Buffer.from(output)
}

// ── the files beside a log ─────────────────────────────────────────────────────────────────────

function checkIndex(
  path: string,
  base: number,
  batches: readonly Batch[],
  isSealed: boolean,
): number {
  if (!existsSync(path)) return 0
  const bytes = readFileSync(path)
  let count = 0
  for (let at = 0; at + 8 <= bytes.length; at += 8) {
    const offset = base + bytes.readUInt32BE(at)
    const position = bytes.readUInt32BE(at + 4)
    const isThere = batches.some((one) => one.baseOffset === offset && one.position === position)
    // The active segment's may speak of a tail that is gone.
    check(isThere || !isSealed, `entry ${at / 8} of ${path} leads to a batch`)
    if (isThere) count++
  }
  return count
}

function checkTimeIndex(
  path: string,
  base: number,
  batches: readonly Batch[],
  isSealed: boolean,
): number {
  if (!existsSync(path)) return 0
  const bytes = readFileSync(path)
  let count = 0
  for (let at = 0; at + 12 <= bytes.length; at += 12) {
    const timestamp = Number(bytes.readBigInt64BE(at))
    const offset = base + bytes.readUInt32BE(at + 8)
    const named = batches.find((one) => one.baseOffset === offset)
    const isRight =
      named?.maxTimestamp === timestamp &&
      batches.every((one) => one.baseOffset > offset || one.maxTimestamp <= timestamp)
    check(isRight || !isSealed, `entry ${at / 12} of ${path} is the largest timestamp so far`)
    if (isRight) count++
  }
  return count
}

interface Seal {
  readonly format: number
  readonly baseOffset: number
  readonly endOffset: number
  readonly sizeBytes: number
  readonly maxTimestampMs: number
  readonly records?: number
  readonly logCrc: number
  readonly indexCrc: number
  readonly timeindexCrc: number
}

function checkSeal(stem: string, base: number, endOffset: number, batches: readonly Batch[]): void {
  const match = /^(.*) ([0-9a-f]{8})\n$/.exec(readFileSync(`${stem}.seal`, 'utf8'))
  check(match !== null, 'a seal is JSON, a space, eight digits and a line feed')
  const [, json = '', digits = ''] = match
  check(crcOf(Buffer.from(json)) === Number.parseInt(digits, 16), 'the checksum of a seal')
  const seal = JSON.parse(json) as Seal // Its fields are checked by use.
  const log = readFileSync(`${stem}.log`)
  check(
    seal.format === 1 && seal.baseOffset === base && seal.endOffset === endOffset,
    'offsets of a seal',
  )
  check(seal.sizeBytes === log.length && seal.logCrc === crcOf(log), 'a seal proves the log')
  check(seal.indexCrc === crcOf(readFileSync(`${stem}.index`)), 'a seal proves the index')
  check(
    seal.timeindexCrc === crcOf(readFileSync(`${stem}.timeindex`)),
    'a seal proves the time index',
  )
  check(
    seal.maxTimestampMs === Math.max(-1, ...batches.map((one) => one.maxTimestamp)),
    'a seal knows the largest timestamp',
  )
  const records = batches.reduce((sum, one) => sum + one.bytes.readInt32BE(57), 0)
  check(records === (seal.records ?? endOffset - base), 'a seal knows how many records there are')
}

function checkActive(entry: Entry, file: Buffer, batches: readonly Batch[]): void {
  check(crcOf(file.subarray(0, entry.position)) === entry.activeCrc, 'the active crc')
  const last = batches.findLast((one) => one.position < entry.position)
  check((last?.position ?? -1) === entry.lastBatchPosition, 'the last batch position')
  check((last?.endOffset ?? entry.activeBase) === entry.durableEnd, 'the durable end')
}
