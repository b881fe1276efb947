import { BrokerError } from '../../common/errors.ts'
import { ACCEPTED_HEADER, DEDUPE_ID_HEADER, DELAY_ID_HEADER } from '../../common/job-headers.ts'
import { isOffset, type Offset, toOffset } from '../../common/offset.ts'
import { MIB } from '../../common/units.ts'
import { endOfBatch, readCompression, readProducerId } from '../../record/batch-header.ts'
import { RecordCursor } from '../../record/record-cursor.ts'
import type { Partition } from '../../topic/partition.ts'
import { checksumOf } from './payload-checksum.ts'

/** A record that was sent with a dedupe id. */
export interface IdRecord {
  readonly dedupeId: string
  readonly offset: number
  readonly acceptedMs: number
  readonly checksum: number
}

const READ_BYTES: number = MIB
const FIRST_STEP_BACK = 1000
/** How far before the place that the timestamps tell of it is looked for records that were accepted in the window. */
const MOST_BACK = 20_000

/**
 * Shows the records with a dedupe id that were accepted after `sinceMs`. Their timestamps do not tell when that was: a producer may set them to anything.
 * So each carries a header with the broker's own time, which rises along the log (but of delayed records, which come later than they were accepted), and
 * timestamps only tell where to begin: from there it goes back until a record is found that was accepted earlier, or for 20 000 records.
 * @throws BrokerError (as rejection) what reading the log throws, but for damage, which is passed over
 */
export async function readWindow(
  partition: Partition,
  sinceMs: number,
  visit: (record: IdRecord) => void,
): Promise<void> {
  const end = partition.highWatermark
  const found = await partition.findOffsetByTimestamp(sinceMs)
  const from = Math.min(found?.offset ?? end, end)
  const scan = new WindowScan(partition, sinceMs, visit)
  let below = from
  for (let step = FIRST_STEP_BACK; !scan.hasSeenOlder && from - below < MOST_BACK; step *= 4) {
    const start = Math.max(partition.logStartOffset, below - step)
    if (start >= below) break
    await scan.read(toOffset(start), toOffset(below))
    below = start
  }
  await scan.read(toOffset(from), end)
}

class WindowScan {
  /** One was met that was accepted before the window began, as soon as it was sent. */
  hasSeenOlder = false
  readonly #partition: Partition
  readonly #sinceMs: number
  readonly #visit: (record: IdRecord) => void
  readonly #cursor: RecordCursor = new RecordCursor({ reuseMemory: true })

  constructor(partition: Partition, sinceMs: number, visit: (record: IdRecord) => void) {
    this.#partition = partition
    this.#sinceMs = sinceMs
    this.#visit = visit
  }

  async read(start: Offset, end: Offset): Promise<void> {
    let from = start
    while (from < end) {
      try {
        const { chunks, nextOffset } = await this.#partition.read(from, READ_BYTES)
        for (const chunk of chunks) this.#readChunk(chunk, from, end)
        if (nextOffset <= from) return
        from = nextOffset
      } catch (error) {
        const next = findWayOn(error, this.#partition)
        if (next === undefined || next <= from) throw error
        from = next
      }
    }
  }

  #readChunk(chunk: Uint8Array, from: Offset, end: Offset): void {
    for (let at = 0; at < chunk.length; at = endOfBatch(chunk, at)) {
      // What comes with a dedupe id is never compressed, and has no producer id.
      if (readCompression(chunk, at) !== 'none' || readProducerId(chunk, at) !== -1) continue
      try {
        this.#cursor.reset(chunk, at)
        while (this.#cursor.next()) {
          const { offset, headerCount } = this.#cursor
          if (headerCount > 1 && offset >= from && offset < end) this.#readRecord()
        }
      } catch (error) {
        // A user's batch that cannot be decoded has nothing of ours.
        if (!(error instanceof BrokerError)) throw error
      }
    }
  }

  #readRecord(): void {
    const cursor = this.#cursor
    let dedupeId = ''
    let acceptedMs = NaN
    let hasWaited = false
    for (const { key, value } of cursor.readHeaders()) {
      if (value === undefined) continue
      if (key === DEDUPE_ID_HEADER) dedupeId = Buffer.from(value).toString('utf8')
      else if (key === DELAY_ID_HEADER) hasWaited = true
      else if (key === ACCEPTED_HEADER) acceptedMs = Number(Buffer.from(value).toString('latin1'))
    }
    if (dedupeId === '' || !Number.isSafeInteger(acceptedMs)) return
    if (acceptedMs <= this.#sinceMs) {
      // One that has waited says nothing of its neighbours.
      this.hasSeenOlder ||= !hasWaited
      return
    }
    const { bytes, keyStart, keyEnd, valueStart, valueEnd, offset } = cursor
    const key = keyStart < 0 ? undefined : bytes.subarray(keyStart, keyEnd)
    const value = valueStart < 0 ? undefined : bytes.subarray(valueStart, valueEnd)
    this.#visit({ dedupeId, offset, acceptedMs, checksum: checksumOf(key, value) })
  }
}

function findWayOn(error: unknown, partition: Partition): Offset | undefined {
  if (!(error instanceof BrokerError) || partition.failure !== undefined) return undefined
  if (error.code === 'OFFSET_OUT_OF_RANGE') return partition.logStartOffset
  const next = error.details['nextOffset']
  return error.code === 'SEGMENT_QUARANTINED' && isOffset(next) ? next : undefined
}
