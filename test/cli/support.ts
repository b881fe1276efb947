import { PassThrough } from 'node:stream'
import { Output } from '../../src/cli/output.ts'
import type { RecordFields, RecordWriter } from '../../src/cli/record-fields.ts'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import type { RecordHeader } from '../../src/record/batch-builder.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'

export interface RecordShape {
  readonly key?: Uint8Array | string | undefined
  /** Null: a tombstone. */
  readonly value?: Uint8Array | string | null
  readonly timestampMs?: number
  readonly headers?: readonly RecordHeader[]
}

/** A cursor that stands on one record, at offset 0. */
export function aRecordWith(shape: RecordShape = {}): RecordFields {
  const builder = new BatchBuilder({ maxBytes: 1 << 20 })
  const { value = 'value', timestampMs = 1_767_225_600_000 } = shape
  builder.tryAppend(shape.key, value ?? undefined, timestampMs, shape.headers)
  const cursor = new RecordCursor()
  cursor.reset(builder.finish(), 0)
  cursor.next()
  return cursor
}

/** What a writer makes of one record. */
export async function written(
  write: RecordWriter,
  record: RecordFields,
  topic = 'orders',
  partition = 3,
): Promise<Buffer> {
  const stream = new PassThrough({ highWaterMark: 1 << 30 })
  const pieces: Buffer[] = []
  stream.on('data', (piece: Buffer) => pieces.push(Buffer.from(piece)))
  const out = new Output(stream, () => undefined)
  write(topic, partition, record, out)
  await out.finish()
  return Buffer.concat(pieces)
}
